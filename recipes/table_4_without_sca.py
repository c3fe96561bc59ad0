"""Table 4, X-VLM without SCA: the zero-shot row of Table 2 again.

python recipes/table_4_without_sca.py --model xvlm --data_root PAB
"""

from reproduction import PAPER_ZERO_SHOT, Row, reproduce

ROW = Row(
    recipe="table_4_without_sca",
    table=4,
    name="X-VLM without SCA",
    paper=PAPER_ZERO_SHOT,
    stages=("matching",),
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
