"""What resolves collisions best on drawn people: SCA, its relatives and score normalisers side by side.

    python benchmarks/reranking_seeds.py --seeds 2 3 4 5 6

Each seed draws a PAB, fine-tunes the demo's start on it and evaluates it, through the commands a user would
type; each method then re-ranks the shortlists' scores of the test queries, as `tpas rerank` does. Prints
Recall@1 by stage and method, mean over the seeds, and whether the expected order holds. `--output` writes it
as JSON and as Markdown beside it; `--quick` only shows that the script runs.
"""

import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from demo_runs import captioned_table, draw_people, seeds_parser, settings_of
from measuring import write_output

from tpas.commands.demo import REPOSITORY, DemoSettings, evaluation_command, fine_tuning_command, run_logged
from tpas.commands.rerank import rerank_score_file
from tpas.data.pab import load_pab, retrieval_split
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
    draw_people(folder, settings, seed)
    run_logged(fine_tuning_command(settings, REPOSITORY / "demo_start", seed), folder, "fine_tune")
    evaluation = evaluation_command(settings, Path("fine_tuned/best"), "fine_tuned")
    run_logged([*evaluation, "--write_scores", Path("scores.npz")], folder, "evaluate")
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
    shown = ", ".join(map(str, seeds))
    caption = f"Recall@1 in %, {settings.test_pairs} test pairs each, mean of seeds {shown}."
    rows = [[name, *(f"{100 * means[stage][name]:.1f}" for stage in STAGES)] for name in METHODS]
    return captioned_table(caption, ["", *STAGES], rows)


def main(argv: list[str] | None = None) -> None:
    parser = seeds_parser(__doc__, seeds=[2, 3, 4, 5, 6])
    parser.add_argument("--parallel", type=int, default=1, help="seeds at a time (default: 1)")
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments)
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
    content = {"settings": asdict(settings), "seeds": arguments.seeds, "runs": runs, "means": means}
    write_output(arguments.output, content, table)


if __name__ == "__main__":
    main()
