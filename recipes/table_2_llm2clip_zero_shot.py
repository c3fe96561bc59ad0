"""Table 2, LLM2CLIP zero-shot.

    python recipes/table_2_llm2clip_zero_shot.py --data_root PAB

The image tower of EVA02-L-14-336 beside a Llama of 1 B tuned on captions: pip install -e '.[baselines]'.
The paper does not say which checkpoint; its text encoder's size says that one.
"""

from reproduction import Row, reproduce

ROW = Row(
    recipe="table_2_llm2clip_zero_shot",
    table=2,
    name="LLM2CLIP, zero-shot",
    paper=(73.61, 96.97, 98.58),
    stages=("embeddings",),
    model="llm2clip:microsoft/LLM2CLIP-Llama3.2-1B-EVA02-L-14-336",
    system="llm2clip",
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
