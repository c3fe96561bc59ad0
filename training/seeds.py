"""The same run from several seeds, and what they are worth together."""

import json
import logging
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..data.whole_files import write_json
from ..evaluation.stages import final_stage
from .arguments import FineTuningArguments
from .fine_tuning import Run
from .run_folder import earlier_run

logger = logging.getLogger(__name__)


def train_on_seeds(arguments: FineTuningArguments) -> None:
    """A run for each seed, in `seed_<seed>/`, and over all of them `seeds.json`: mean and deviation."""
    output_dir = Path(arguments.output_dir)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    folders = [output_dir / f"seed_{seed}" for seed in seeds]
    if arguments.resume_from_checkpoint is None:
        for folder in (output_dir, *folders):  # lest the last one be refused after days
            earlier_run(folder, arguments.overwrite_output_dir)
    results = []
    for seed, folder in zip(seeds, folders, strict=True):
        Run(replace(arguments, seed=seed, seeds=1, output_dir=str(folder))).train()
        results.append(best_evaluation(folder / "training_log.jsonl"))
    summary = {
        stage: {
            metric: summarise([result[stage]["all"][metric] for result in results])
            for metric in metrics["all"]
        }
        for stage, metrics in results[0].items()
    }
    if PartialState().is_main_process:
        write_json(output_dir / "seeds.json", {"seeds": list(seeds), "stages": summary})
    for stage, metrics in summary.items():
        shown = (
            f"{metric} {100 * m['mean']:.2f} ± {100 * m['deviation']:.2f}" for metric, m in metrics.items()
        )
        logger.info("%d seeds, %s: %s", len(results), stage, ", ".join(shown))


def best_evaluation(log_file: Path) -> dict[str, Any]:
    """The stages of the evaluation by which best/ was chosen: the first with the greatest Recall@1."""
    entries = map(json.loads, log_file.read_text(encoding="utf-8").splitlines())
    evaluations = [entry["evaluation"] for entry in entries if "evaluation" in entry]
    stage = final_stage(evaluations[0])
    return max(evaluations, key=lambda stages: stages[stage]["all"]["recall@1"])


def summarise(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values), "values": values}
