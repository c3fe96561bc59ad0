"""Whether captions that read the same should be right for each other's images: `--equal_texts_match`.

    python benchmarks/equal_texts.py --output benchmarks/equal_texts.json

Each seed draws a PAB of its own, whose training captions all become coarse ("A woman is walking on a lawn."),
so that many people have one in common. With and without the flag the demo's start is fine-tuned on it, by the
commands a user would type, and its last weights are measured: by mAP with the coarse captions of the test
images, each of which is right for all images that it describes, and by Recall@1 with their whole captions.
Prints the table and, with `--output`, writes it as JSON and as Markdown beside it.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from demo_runs import captioned_table, draw_people, seeds_parser, settings_of
from measuring import write_output

from tpas.commands.demo import REPOSITORY, TPAS, DemoSettings, as_flags, fine_tuning_command, run_logged
from tpas.evaluation.stages import Stage

STAGES = (Stage.EMBEDDINGS, Stage.MATCHING)
MEASURED = {"ucc": "mAP", "test": "recall@1"}


def rewrite(path: Path, new: Path, change: Callable[[dict], dict]) -> list[dict]:
    """Writes the changed rows of an annotation file into another, or the same; returns them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [row | change(row) for row in map(json.loads, lines)]
    new.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def make_coarse(root: Path) -> float:
    """Coarse captions for training, and for testing as the split "ucc".

    Returns:
        The share of the training captions that are another pair's as well.
    """
    annotation = root / "annotation"
    rows = []
    for path in sorted((annotation / "train").glob("*.json")):
        rows += rewrite(path, path, lambda row: {"caption": row["source_caption"]})
    test = annotation / "test"
    rewrite(
        test / "attr.json",
        test / "ucc.json",
        lambda row: {"caption": row["source_caption"], "image_id": row["source_caption"]},
    )
    captions = [row["caption"] for row in rows]
    return sum(captions.count(caption) > 1 for caption in captions) / len(captions)


def markdown(runs: list[dict], settings: DemoSettings) -> str:
    seeds = sorted({run["seed"] for run in runs})
    rows = []
    for match, name in ((False, "negatives"), (True, "right for each other's images")):
        cells = []
        for split in MEASURED:
            for stage in STAGES:
                values = [100 * run[split][stage] for run in runs if run["match"] == match]
                each = ", ".join(f"{value:.1f}" for value in values)
                cells.append(f"{statistics.fmean(values):.1f} ({each})")
        rows.append([name, *cells])
    repeated = statistics.fmean(run["repeated"] for run in runs)
    caption = (
        f"In %, {settings.test_pairs} test pairs, mean of seeds {', '.join(map(str, seeds))}; "
        f"{settings.train_pairs} pairs with coarse captions, {repeated:.0%} of which are another's as well, "
        f"{settings.max_train_steps} steps of {settings.batch_size}."
    )
    names = {"ucc": "mAP, coarse captions", "test": "Recall@1, whole captions"}
    heads = ["equal texts are", *(f"{names[split]}: {stage}" for split in MEASURED for stage in STAGES)]
    return captioned_table(caption, heads, rows)


def main(argv: list[str] | None = None) -> None:
    parser = seeds_parser(__doc__, seeds=[0, 1])
    parser.add_argument("--steps", type=int, default=300, help="training steps of each run (default: 300)")
    arguments = parser.parse_args(argv)
    settings = replace(settings_of(arguments), batch_size=32)
    runs = []
    with tempfile.TemporaryDirectory(prefix="tpas-equal-texts-") as folder:
        for seed in arguments.seeds:
            own = Path(folder) / str(seed)
            repeated = make_coarse(draw_people(own, settings, seed))
            for match in (False, True):
                training = fine_tuning_command(settings, REPOSITORY / "demo_start", seed)
                flags = {"evaluate_every": 0, "equal_texts_match": match, "overwrite_output_dir": True}
                run_logged([*training, *as_flags(flags)], own, "fine_tune")
                figures = {}
                for split, metric in MEASURED.items():
                    output = Path(f"{split}.json")
                    of_run = {"model": Path("fine_tuned/last"), "data_root": Path("pab"), "split": split}
                    command = [*TPAS, "evaluate", *as_flags(of_run | {"output": output})]
                    run_logged(command, own, f"evaluate_{split}")
                    stages = json.loads((own / output).read_text())["stages"]
                    figures[split] = {stage: stages[stage]["all"][metric] for stage in STAGES}
                runs.append({"seed": seed, "repeated": repeated, "match": match} | figures)
                print(json.dumps(runs[-1]), flush=True)

    table = markdown(runs, settings)
    print(f"\n{table}")
    write_output(arguments.output, {"settings": asdict(settings), "runs": runs}, table)


if __name__ == "__main__":
    main()
