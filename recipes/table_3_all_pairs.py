"""Table 3, X-VLM fine-tuned on all training pairs.

python recipes/table_3_all_pairs.py --model xvlm --data_root PAB \\
        --config_file recipes/accelerate/multi_gpu.yaml
"""

from reproduction import Row, reproduce

ROW = Row(
    recipe="table_3_all_pairs",
    table=3,
    name="X-VLM, all training pairs",
    paper=(83.52, 98.84, 99.54),
    stages=("matching", "sca"),
    fine_tuned=True,
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
