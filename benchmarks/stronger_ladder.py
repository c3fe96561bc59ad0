"""What each ingredient of recipes/stronger_than_the_paper.py brings on drawn people.

    python benchmarks/stronger_ladder.py --seeds 5 6 --output benchmarks/stronger_ladder.json

Each seed draws a PAB of its own and runs the recipe on it, three fine-tunings of the demo's start and what
follows, with the demo's numbers. Prints the means over the seeds; `--output` writes them as JSON, and as
Markdown beside it. `--quick` only shows that the script runs.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from demo_runs import captioned_table, draw_people, seeds_parser, settings_of
from measuring import write_output

from tpas.commands.demo import REPOSITORY, DemoSettings, as_flags
from tpas.evaluation.settings import CUTOFFS

RECIPE = "stronger_than_the_paper"
OF_TRAINING = ("max_train_steps", "batch_size", "learning_rate", "warmup_ratio", "max_grad_norm")
OF_TRAINING += ("augmentation", "validation_fraction", "log_every", "num_workers")


def run_seed(settings: DemoSettings, seed: int, folder: Path) -> dict[str, list[float]]:
    """The recipe's ladder: each step's Recall@1, @5, @10 in percent."""
    data_root = draw_people(folder, settings, seed)
    training = {name: getattr(settings, name) for name in OF_TRAINING}
    # The last weights, so that no step gains by being chosen, and no time goes into choosing.
    training |= {"report_to": "none", "evaluate_every": 0, "checkpoint_every": 0}
    recipe = {
        "model": REPOSITORY / "demo_start",
        "data_root": data_root,
        "output_dir": folder / "out",
        "pairs": 0,
        "weights": "last",
        "fusion_weight": settings.fusion_weight,
    }
    script = REPOSITORY / "recipes" / f"{RECIPE}.py"
    seeds = ["--seeds", seed, seed + 100]
    command = [sys.executable, script, *as_flags(recipe), *seeds, "--", *as_flags(training)]
    alone = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    subprocess.run(list(map(str, command)), check=True, env=os.environ | alone)
    return json.loads((folder / "out" / f"{RECIPE}.json").read_text(encoding="utf-8"))["ladder"]


def markdown(runs: list[dict[str, list[float]]], seeds: list[int], settings: DemoSettings) -> str:
    several = len(seeds) > 1
    drawn = f"{'Means over the drawn PABs' if several else 'The drawn PAB'} of seed{'s' if several else ''} "
    # Of a mean over so many ones and zeros; greatest where half are ones.
    standard_error = 50 / math.sqrt(len(seeds) * settings.test_pairs)
    caption = (
        "# Stronger than the paper, on drawn people\n\n"
        f"{drawn}{', '.join(map(str, seeds))}, {settings.test_pairs} test pairs{' each' if several else ''}; "
        f"{settings.train_pairs:,} training pairs, {settings.max_train_steps} steps of "
        f"{settings.batch_size}, last weights; embeddings weigh {settings.fusion_weight} in the fusion. In "
        f"%; in brackets each seed's Recall@1. The standard error of a figure is up to {standard_error:.1f} "
        "points, so a smaller difference says nothing; a greater one says which way an ingredient goes on "
        "drawn people, not how far it goes on PAB."
    )
    rows = []
    for name in runs[0]:
        means = [statistics.fmean(run[name][place] for run in runs) for place in range(len(CUTOFFS))]
        own = ", ".join(f"{run[name][0]:.1f}" for run in runs)
        rows.append([name, f"{means[0]:.1f} ({own})", *(f"{mean:.1f}" for mean in means[1:])])
    return captioned_table(caption, ["", *(f"Recall@{k}" for k in CUTOFFS)], rows)


def main(argv: list[str] | None = None) -> None:
    parser = seeds_parser(__doc__, seeds=[5, 6])
    parser.add_argument("--steps", type=int, default=150, help="of each fine-tuning (default: 150)")
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments)
    runs = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory(prefix="tpas-ladder-") as folder:
            runs.append(run_seed(settings, seed, Path(folder)))
    table = markdown(runs, arguments.seeds, settings)
    print(f"\n{table}")
    content = {"seeds": arguments.seeds, "steps": settings.max_train_steps, "runs": runs}
    write_output(arguments.output, content, table)


if __name__ == "__main__":
    main()
