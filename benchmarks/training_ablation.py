"""What each addition to the training recipe brings on drawn people, positive or not.

    python benchmarks/training_ablation.py --seeds 0 1 --parallel 2

Each seed draws a PAB of its own; each variant fine-tunes the demo's start on it, through the commands a user
would type, and is measured on the test pairs. The last weights are measured, not the best by validation: so
no variant gains by being chosen. Prints the table and, with `--output`, writes it as JSON and as Markdown
beside it. Several runs share the machine with `--parallel`, each on one thread.
"""

import json
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from demo_runs import captioned_table, draw_people, seeds_parser, settings_of
from measuring import write_output

from tpas.commands.demo import (
    REPOSITORY,
    DemoSettings,
    as_flags,
    evaluation_command,
    fine_tuning_command,
    run_logged,
)
from tpas.evaluation.stages import Stage

BASELINE = "recipe alone"
# Name to flags. The demo's label smoothing and masked language modelling are variants here.
VARIANTS: dict[str, dict[str, object]] = {
    BASELINE: {},
    "grouped batches (source_group_size 2)": {"source_group_size": 2},
    "hard negatives (hard_i, hard_c)": {"hard_negatives": True},
    "second view (EDA, weight 0.8)": {"second_view_weight": 0.8},
    "label smoothing 0.2": {"label_smoothing": 0.2},
    "masked language modelling (weight 1)": {"masked_language_modelling_weight": 1.0},
    "moving average 0.99": {"ema_decay": 0.99},
    "LoRA rank 16, learning rate 2e-3": {"lora_rank": 16, "learning_rate": 2e-3},
}
STAGES = [stage for stage in Stage if stage is not Stage.EMBEDDINGS_SCA]


def run_variant(settings: DemoSettings, start: Path, seed: int, name: str, folder: Path) -> dict[str, float]:
    """Recall@1 of each stage on the test pairs of the drawn PAB in `folder`."""
    (own := folder / name.split(" (")[0].replace(" ", "_")).mkdir()
    (own / "pab").symlink_to(folder / "pab")
    training = fine_tuning_command(settings, start, seed)
    run_logged([*training, *as_flags({"evaluate_every": 0} | VARIANTS[name])], own, "fine_tune")
    run_logged(evaluation_command(settings, Path("fine_tuned/last"), "fine_tuned"), own, "evaluate")
    stages = json.loads((own / "evaluation" / "fine_tuned" / "results.json").read_text())["stages"]
    return {stage: stages[stage]["all"]["recall@1"] for stage in STAGES}


def summarise(runs: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Variant to stage to the mean over the seeds, and of the differences to the baseline."""
    recalls = {(run["variant"], run["seed"]): run["recall@1"] for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for variant in dict.fromkeys(run["variant"] for run in runs):
        summary[variant] = {}
        for stage in STAGES:
            own = [recalls[variant, seed][stage] for seed in seeds]
            gains = [recall - recalls[BASELINE, seed][stage] for recall, seed in zip(own, seeds, strict=True)]
            summary[variant][stage] = {"mean": statistics.fmean(own), "gain": statistics.fmean(gains)}
    return summary


def markdown(summary: dict, settings: DemoSettings, seeds: list[int]) -> str:
    caption = (
        f"Recall@1 in %, {settings.test_pairs} test pairs, mean of seeds {', '.join(map(str, seeds))}; in "
        f"brackets the difference to the recipe alone; {settings.train_pairs} pairs, "
        f"{settings.max_train_steps} steps of {settings.batch_size}. A few points are within what one "
        "seed varies."
    )
    rows = [
        [variant, *(f"{100 * own['mean']:.1f} ({100 * own['gain']:+.1f})" for own in stages.values())]
        for variant, stages in summary.items()
    ]
    return captioned_table(caption, ["variant", *STAGES], rows)


def main(argv: list[str] | None = None) -> None:
    parser = seeds_parser(__doc__, seeds=[0, 1])
    parser.add_argument("--steps", type=int, default=200, help="training steps of each run (default: 200)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time (default: 1)")
    arguments = parser.parse_args(argv)
    settings = replace(settings_of(arguments), label_smoothing=0.0, masked_language_modelling_weight=0.0)
    start = REPOSITORY / "demo_start"
    if arguments.parallel > 1:
        os.environ["OMP_NUM_THREADS"] = "1"

    with tempfile.TemporaryDirectory(prefix="tpas-ablation-") as folder:
        folders = {seed: Path(folder) / str(seed) for seed in arguments.seeds}
        for seed, of_seed in folders.items():
            draw_people(of_seed, settings, seed)

        def run(task: tuple[str, int]) -> dict:
            variant, seed = task
            recalls = run_variant(settings, start, seed, variant, folders[seed])
            shown = ", ".join(f"{stage} {100 * recall:.1f}" for stage, recall in recalls.items())
            print(f"{variant}, seed {seed}: {shown}", flush=True)
            return {"variant": variant, "seed": seed, "recall@1": recalls}

        tasks = [(variant, seed) for variant in VARIANTS for seed in arguments.seeds]
        with ThreadPoolExecutor(arguments.parallel) as pool:
            runs = list(pool.map(run, tasks))

    summary = summarise(runs)
    table = markdown(summary, settings, arguments.seeds)
    print(f"\n{table}")
    content = {"settings": asdict(settings), "runs": runs, "summary": summary}
    write_output(arguments.output, content, table)


if __name__ == "__main__":
    main()
