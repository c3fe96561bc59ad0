"""Table 2, LLM2CLIP fine-tuned on PAB.

    python recipes/table_2_llm2clip_fine_tuned.py --data_root PAB \\
        --config_file recipes/accelerate/multi_gpu.yaml

The image tower of EVA02-L-14-336 beside a Llama of 1 B tuned on captions: pip install -e '.[baselines]'.
The paper gives no numbers of this fine-tuning; here those of X-VLM's, with the contrastive loss alone. The
Llama stays as it is, as in LLM2CLIP's own training.
"""

from reproduction import Row, reproduce

ROW = Row(
    recipe="table_2_llm2clip_fine_tuned",
    table=2,
    name="LLM2CLIP, fine-tuned",
    paper=(79.93, 99.09, 99.75),
    stages=("embeddings",),
    fine_tuned=True,
    model="llm2clip:microsoft/LLM2CLIP-Llama3.2-1B-EVA02-L-14-336",
    system="llm2clip",
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
