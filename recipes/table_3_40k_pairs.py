"""Table 3, X-VLM fine-tuned on 40,000 training pairs.

python recipes/table_3_40k_pairs.py --model xvlm --data_root PAB \\
        --config_file recipes/accelerate/multi_gpu.yaml
"""

from reproduction import Row, reproduce

ROW = Row(
    recipe="table_3_40k_pairs",
    table=3,
    name="X-VLM, 40,000 training pairs",
    paper=(83.52, 98.58, 99.54),
    stages=("matching", "sca"),
    fine_tuned=True,
    pairs=40_000,
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
