"""Whether captions that read the same should be right for each other's images: `--equal_texts_match`.

    python benchmarks/equal_texts.py --output benchmarks/equal_texts.json

Each seed draws a PAB of its own, of which a share of the training captions become their coarse form ("A woman
is walking on a lawn."), which many people have in common; the test captions stay whole. With and without the
flag the demo's start is fine-tuned on it, through the commands a user would type, and its last weights are
measured. Prints the table and, with `--output`, writes it as JSON and as Markdown beside it.
"""

import json
import random
import shutil
import statistics
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from demo_runs import captioned_table, draw_people, seeds_parser, settings_of
from measuring import write_output

from tpas.commands.demo import REPOSITORY, as_flags, evaluation_command, fine_tuning_command, run_logged
from tpas.evaluation.stages import Stage

SHARES = (0.5, 1.0)  # of the training captions that are coarse
STAGES = [stage for stage in Stage if stage is not Stage.EMBEDDINGS_SCA]


def make_coarse(root: Path, share: float, seed: int) -> float:
    """Writes a share of the training captions coarsely; returns which share of all is another pair's too."""
    files = sorted((root / "annotation" / "train").glob("*.json"))
    rng, captions = random.Random(seed), []
    for path in files:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            if rng.random() < share:
                row["caption"] = row["source_caption"]
            captions.append(row["caption"])
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sum(captions.count(caption) > 1 for caption in captions) / len(captions)


def main(argv: list[str] | None = None) -> None:
    parser = seeds_parser(__doc__, seeds=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80, help="training steps of each run (default: 80)")
    arguments = parser.parse_args(argv)
    settings = replace(settings_of(arguments), source_group_size=1, batch_size=32)
    runs = []
    with tempfile.TemporaryDirectory(prefix="tpas-equal-texts-") as folder:
        for seed in arguments.seeds:
            drawn = draw_people(Path(folder) / f"drawn_{seed}", settings, seed)
            for share in SHARES:
                own = Path(folder) / f"{seed}_{share}"
                shutil.copytree(drawn, own / "pab")
                repeated = make_coarse(own / "pab", share, seed)
                for match in (False, True):
                    training = fine_tuning_command(settings, REPOSITORY / "demo_start", seed)
                    flags = {"evaluate_every": 0, "equal_texts_match": match, "overwrite_output_dir": True}
                    run_logged([*training, *as_flags(flags)], own, "fine_tune")
                    evaluation = evaluation_command(settings, Path("fine_tuned/last"), "fine_tuned")
                    run_logged(evaluation, own, "evaluate")
                    results = json.loads((own / "evaluation" / "fine_tuned" / "results.json").read_text())
                    recalls = {stage: results["stages"][stage]["all"]["recall@1"] for stage in STAGES}
                    run = {"seed": seed, "coarse": share, "repeated": repeated, "match": match}
                    runs.append(run | {"recall@1": recalls})
                    print(runs[-1], flush=True)

    rows = []
    for share in SHARES:
        of_share = [run for run in runs if run["coarse"] == share]
        repeated = statistics.fmean(run["repeated"] for run in of_share)
        negatives, right = (
            {stage: [run["recall@1"][stage] for run in of_share if run["match"] == match] for stage in STAGES}
            for match in (False, True)
        )
        for name, recalls in (("negatives", negatives), ("right", right)):
            gains = {
                stage: [a - b for a, b in zip(recalls[stage], negatives[stage], strict=True)]
                for stage in STAGES
            }
            cells = [
                f"{100 * statistics.fmean(recalls[stage]):.1f} ({100 * statistics.fmean(gains[stage]):+.1f})"
                for stage in STAGES
            ]
            rows.append([f"{share:.0%}", f"{repeated:.0%}", name, *cells])
    caption = (
        f"Recall@1 in %, {settings.test_pairs} test pairs, mean of seeds "
        f"{', '.join(map(str, arguments.seeds))}; in brackets the difference to equal texts as negatives; "
        f"{settings.train_pairs} pairs, {settings.max_train_steps} steps of {settings.batch_size}."
    )
    heads = ["coarse captions", "captions that are not alone", "equal texts count as", *STAGES]
    table = captioned_table(caption, heads, rows)
    print(f"\n{table}")
    write_output(arguments.output, {"settings": asdict(settings), "runs": runs}, table)


if __name__ == "__main__":
    main()
