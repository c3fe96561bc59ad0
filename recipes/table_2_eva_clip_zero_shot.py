"""Table 2, EVA-CLIP zero-shot.

    python recipes/table_2_eva_clip_zero_shot.py --data_root PAB

EVA02-B-16, 149.69 M parameters, 224 pixels, through open_clip: pip install -e '.[baselines]'.
The paper does not say which weights; these are those of open_clip.
"""

from reproduction import Row, reproduce

ROW = Row(
    recipe="table_2_eva_clip_zero_shot",
    table=2,
    name="EVA-CLIP, zero-shot",
    paper=(60.01, 90.14, 94.54),
    stages=("embeddings",),
    model="open_clip:EVA02-B-16/merged2b_s8b_b131k",
    system="eva_clip",
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
