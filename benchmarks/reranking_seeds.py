"""What resolves collisions best on drawn people: SCA, its relatives and score normalisers side by side.

    python benchmarks/reranking_seeds.py --seeds 2 3 4

Each seed draws a PAB, fine-tunes the demo's start on it and evaluates it, through the commands a user would
type; each method then re-ranks the shortlists' scores of the test queries, as `tpas rerank` does. Prints
Recall@1 by stage and method, mean over the seeds, and whether the expected order holds. `--output` writes it
as JSON and as Markdown beside it; `--quick` only shows that the script runs.
"""

import argparse
import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tpas.commands.demo import (
    QUICK,
    REPOSITORY,
    DemoSettings,
    evaluation_command,
    fine_tuning_command,
    run_logged,
)
from tpas.commands.rerank import rerank_score_file
from tpas.data.drawn.synthetic_pab import DEMO_WORLD, draw_pab
from tpas.data.pab import load_pab, retrieval_split
from tpas.data.whole_files import write_json, write_text
from tpas.evaluation.stages import Stage
from tpas.reranking.score_files import ScoreFile, read_score_file

STAGES = [stage for stage in Stage if stage.has_scores]
# Name to method of `tpas rerank` and its options; None: the scores as they are.
METHODS: dict[str, tuple[str, dict[str, object]] | None] = {
    "as ranked": None,
    "SCA (paper)": ("sca", {}),
    "SCA, single pass": ("single-pass", {}),
    "SCA, 9 moves": ("sca", {"max_shift": 9}),
    "margin-SCA": ("margin-sca", {}),
    "margin-SCA, 9 moves": ("margin-sca", {"max_shift": 9}),
    "greedy matching": ("greedy", {}),
    "assignment among the best 10": ("assignment", {"top_k": 10}),
    "assignment, shortlist": ("assignment", {}),
    "dual softmax": ("dual-softmax", {}),
    "Sinkhorn": ("sinkhorn", {}),
    "CSLS": ("csls", {}),
}
EXPECTED_ORDER = ("as ranked", "SCA (paper)", "margin-SCA", "assignment among the best 10")


def recall_at_1(content: ScoreFile, relevant: dict[str, list[str]]) -> float:
    first = [content.gallery_ids[row[0]] for row in content.indices]
    pairs = zip(content.query_ids, first, strict=True)
    return statistics.fmean(image in relevant[query] for query, image in pairs)


def run_seed(settings: DemoSettings, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Stage to method to Recall@1."""
    pairs = {"train_pairs": settings.train_pairs, "test_pairs": settings.test_pairs}
    draw_pab(folder / "pab", world=DEMO_WORLD, seed=seed, **pairs)
    run_logged(fine_tuning_command(settings, REPOSITORY / "demo_start", seed), folder, "fine_tune")
    evaluation = evaluation_command(settings, Path("fine_tuned/best"), "fine_tuned")
    run_logged([*evaluation, "--scores", Path("scores.npz")], folder, "evaluate")
    benchmark = retrieval_split(load_pab(folder / "pab", "test", cache_dir=folder / "cache"))
    relevant = dict(zip(benchmark.query_ids, benchmark.relevant, strict=True))
    recalls = {}
    for stage in STAGES:
        scores = read_score_file(folder / f"scores.{stage}.npz")
        recalls[stage] = {
            name: recall_at_1(scores if method is None else rerank_score_file(scores, *method)[0], relevant)
            for name, method in METHODS.items()
        }
    return recalls


def markdown(means: dict[str, dict[str, float]], settings: DemoSettings, seeds: list[int]) -> str:
    lines = [
        f"Recall@1 in %, {settings.test_pairs} test pairs each, mean of seeds {', '.join(map(str, seeds))}.",
        "",
        f"| | {' | '.join(STAGES)} |",
        "|---" * (1 + len(STAGES)) + "|",
        *(
            f"| {name} | {' | '.join(f'{100 * means[stage][name]:.1f}' for stage in STAGES)} |"
            for name in METHODS
        ),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4], help="default: 2 3 4")
    parser.add_argument("--parallel", type=int, default=1, help="seeds at a time (default: 1)")
    parser.add_argument("--quick", action="store_true", help="the demo's --quick: nothing is learnt")
    parser.add_argument(
        "--output", type=Path, help="write every figure here, and a .md of that name beside it"
    )
    arguments = parser.parse_args(argv)
    settings = QUICK if arguments.quick else DemoSettings()
    if arguments.parallel > 1:
        os.environ["OMP_NUM_THREADS"] = "1"

    with tempfile.TemporaryDirectory(prefix="tpas-sca-") as folder:

        def run(seed: int) -> dict[str, dict[str, float]]:
            (own := Path(folder) / str(seed)).mkdir()
            recalls = run_seed(settings, seed, own)
            print(f"seed {seed}: {recalls}", flush=True)
            return recalls

        with ThreadPoolExecutor(arguments.parallel) as pool:
            runs = list(pool.map(run, arguments.seeds))

    means = {
        stage: {name: statistics.fmean(run[stage][name] for run in runs) for name in METHODS}
        for stage in STAGES
    }
    table = markdown(means, settings, arguments.seeds)
    print(f"\n{table}")
    for stage, of_method in means.items():
        ladder = [of_method[name] for name in EXPECTED_ORDER]
        verdict = "holds" if ladder == sorted(ladder) else "does not hold"
        print(f"{stage}: {' <= '.join(EXPECTED_ORDER)} {verdict}")
    if arguments.output:
        content = {"settings": asdict(settings), "seeds": arguments.seeds, "runs": runs, "means": means}
        write_json(arguments.output, content)
        write_text(arguments.output.with_suffix(".md"), table)


if __name__ == "__main__":
    sys.exit(main())
