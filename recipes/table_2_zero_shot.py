"""Table 2, X-VLM zero-shot: a converted checkpoint on PAB's test split, without any training on PAB.

    python recipes/table_2_zero_shot.py --model xvlm --data_root PAB

The paper does not say which checkpoint; zero_shot_grid.py looks for it.
"""

from reproduction import PAPER_ZERO_SHOT, Row, reproduce

ROW = Row(
    recipe="table_2_zero_shot",
    table=2,
    name="X-VLM, zero-shot",
    paper=PAPER_ZERO_SHOT,
    stages=("matching",),
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
