"""Table 4, X-VLM with SCA, zero-shot.

    python recipes/table_4_with_sca.py --model xvlm --data_root PAB

In the output folder of table_4_without_sca.py the evaluation is found there: one measures both stages. The
other readings of SCA: -- --sca_mode single_pass, --sca_confidence margin, --sca_max_shift 9.
"""

from reproduction import Row, reproduce

ROW = Row(
    recipe="table_4_with_sca",
    table=4,
    name="X-VLM with SCA",
    paper=(80.54, 98.28, 99.24),
    stages=("sca",),
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
