"""Whether every step of the demo's table is an improvement, over several seeds on average.

Each seed draws other people, fine-tunes with another order and measures on other test pairs:

    python benchmarks/demo_seeds.py --seeds 2 3 4 5 6 --output benchmarks/demo_seeds.json

Prints the mean of each figure, says of each step whether it is an improvement, and ends with status 1 when
one is not. `--output` writes every figure as JSON, and each seed's as Markdown beside it. ``--quick`` only
shows that the script runs.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from demo_runs import captioned_table
from measuring import write_output

from tpas.commands.demo import QUICK, REPOSITORY, DemoError, DemoSettings, format_table, run_experiment
from tpas.evaluation.settings import CUTOFFS
from tpas.evaluation.stages import final_stage
from tpas.evaluation.tables import stage_rows

LEAST_RECALL_AFTER_MATCHING = 0.40


def mean_results(results: list[dict]) -> dict:
    """The mean of each figure of several `results.json`; all must hold the same stages and groups."""
    return {
        "stages": {
            stage: {
                group: {
                    name: statistics.fmean(result["stages"][stage][group][name] for result in results)
                    for name in figures
                }
                for group, figures in groups.items()
            }
            for stage, groups in results[0]["stages"].items()
        }
    }


def checks(zero_shot: dict, fine_tuned: dict) -> list[tuple[str, float, float, bool]]:
    """(what, Recall@1 before, Recall@1 after, whether it holds) for every step that the demo promises."""

    def recall(results: dict, stage: str) -> float:
        return results["stages"][stage]["all"]["recall@1"]

    matching = final_stage(fine_tuned["stages"])
    steps = []
    for row in stage_rows(fine_tuned):
        heading = row.stage.heading.removeprefix("+ ")
        steps.append((f"zero-shot < fine-tuned, {heading}", recall(zero_shot, row.stage), row.recalls[0]))
    for model, results in (("zero-shot", zero_shot), ("fine-tuned", fine_tuned)):
        ranked, matched, sca = (recall(results, stage) for stage in ("embeddings", matching, "sca"))
        steps += [(f"{model}: embeddings < {matching}", ranked, matched)]
        steps += [(f"{model}: {matching} < with SCA", matched, sca)]
    judged = [(what, before, after, before < after) for what, before, after in steps]
    after, least = recall(fine_tuned, matching), LEAST_RECALL_AFTER_MATCHING
    last = f"fine-tuned, after matching: at least {100 * least:.0f} %"
    return [*judged, (last, least, after, after >= least)]


def markdown(runs: list[dict], settings: DemoSettings) -> str:
    """Recall@1 of each seed and stage, zero-shot and fine-tuned."""
    headings = [row.stage.heading for row in stage_rows(runs[0]["fine_tuned"])]
    rows = []
    for run in runs:
        pairs = zip(stage_rows(run["zero_shot"]), stage_rows(run["fine_tuned"]), strict=True)
        values = [f"{100 * before.recalls[0]:.1f} → {100 * after.recalls[0]:.1f}" for before, after in pairs]
        rows.append([str(run["seed"]), *values])
    caption = f"Recall@1 in %, zero-shot → fine-tuned; {settings.test_pairs} test pairs of each seed."
    return captioned_table(caption, ["seed", *headings], rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6], help="default: 2 to 6")
    start = REPOSITORY / "demo_start"
    parser.add_argument("--model_name_or_path", type=Path, default=start, help="default: demo_start/")
    parser.add_argument("--quick", action="store_true", help="the demo's --quick: small, nothing learnt")
    parser.add_argument("--output", type=Path, help="every figure in JSON; a .md of that name is beside it")
    arguments = parser.parse_args(argv)
    settings = QUICK if arguments.quick else DemoSettings()
    start = arguments.model_name_or_path.resolve()

    runs = []
    for seed in arguments.seeds:
        print(f"seed {seed}")
        with tempfile.TemporaryDirectory(prefix="tpas-demo-") as folder:
            try:
                experiment = run_experiment(settings, start, seed, Path(folder))
            except DemoError as error:
                raise SystemExit(f"demo_seeds: seed {seed}: {error}") from error
        zero_shot, fine_tuned = experiment.zero_shot.results, experiment.fine_tuned.results
        print(format_table(zero_shot, fine_tuned), end="\n\n", flush=True)
        both = {"zero_shot": zero_shot, "fine_tuned": fine_tuned}
        stages = {name: {"stages": results["stages"]} for name, results in both.items()}
        runs.append({"seed": seed, **stages, "durations": experiment.durations})

    zero_shot = mean_results([run["zero_shot"] for run in runs])
    fine_tuned = mean_results([run["fine_tuned"] for run in runs])
    print(f"mean over {len(runs)} seeds, {', '.join(f'R@{cutoff}' for cutoff in CUTOFFS)} and mAP in %")
    print(format_table(zero_shot, fine_tuned), end="\n\n")
    judged = checks(zero_shot, fine_tuned)
    for what, before, after, holds in judged:
        print(f"{'yes' if holds else 'NO ':3}  {what}: {100 * before:.1f} -> {100 * after:.1f}")
    means = {"zero_shot": zero_shot, "fine_tuned": fine_tuned}
    content = {"settings": asdict(settings), "runs": runs} | means
    write_output(arguments.output, content, markdown(runs, settings))
    return 0 if all(holds for *_, holds in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
