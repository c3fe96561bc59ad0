"""Table 2, EVA-CLIP fine-tuned on PAB.

    python recipes/table_2_eva_clip_fine_tuned.py --data_root PAB \\
        --config_file recipes/accelerate/multi_gpu.yaml

EVA02-B-16, 149.69 M parameters, 224 pixels, through open_clip: pip install -e '.[baselines]'.
The paper gives no numbers of this fine-tuning; here those of X-VLM's, with the contrastive loss alone.
"""

from reproduction import Row, reproduce

ROW = Row(
    recipe="table_2_eva_clip_fine_tuned",
    table=2,
    name="EVA-CLIP, fine-tuned",
    paper=(77.81, 98.03, 99.39),
    stages=("embeddings",),
    fine_tuned=True,
    model="open_clip:EVA02-B-16/merged2b_s8b_b131k",
    system="eva_clip",
)


def main(argv: list[str] | None = None) -> None:
    reproduce(ROW, argv)


if __name__ == "__main__":
    main()
