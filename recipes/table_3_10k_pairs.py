"""Table 3, X-VLM fine-tuned on 10,000 training pairs.

python recipes/table_3_10k_pairs.py --model xvlm --data_root PAB \\
        --config_file recipes/accelerate/multi_gpu.yaml
"""

from reproduction import Row, reproduce

ROW = Row(
    recipe="table_3_10k_pairs",
    table=3,
    name="X-VLM, 10,000 training pairs",
    paper=(85.49, 99.29, 99.80),
    stages=("matching", "sca"),
    fine_tuned=True,
    pairs=10_000,
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
