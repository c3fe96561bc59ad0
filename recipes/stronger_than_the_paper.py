"""Stronger than the paper: what is known to bring most, one ingredient on top of the other.

    python recipes/stronger_than_the_paper.py --model xvlm --data_root PAB

Fine-tunes the paper's recipe, and twice with PAB's hard negatives; fuses matching with embeddings, then the
two models; resolves collisions. Prints Recall@1, @5, @10 after each step. What each is expected to bring, and
whence: recipes/README.md. One-to-one assignment and SCA look at all queries together and assume that an
image answers one: right for PAB's test set, not for a gallery at large.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import reproduction
from reproduction import PAPER, Row, Run, Workplace, run_logged
from tpas.commands.demo import TPAS, as_flags
from tpas.data.pab import load_pab, retrieval_split
from tpas.evaluation.settings import CUTOFFS
from tpas.reranking.score_files import read_score_file

RECIPE = "stronger_than_the_paper"
PAIRS = 10_000  # the best row of the paper's Table 3
PAPER_BEST = 85.49
ASSIGNED_AMONG = 10


# The steps, and which one each is on top of.
EMBEDDINGS, MATCHING = "the paper's recipe, embeddings", "the paper's recipe, matching"
FUSED, HARD_NEGATIVES = "+ matching fused with embeddings", "+ hard negatives in training"
OTHER_SEED, TWO_MODELS = "the same, another seed", "+ the two models fused"
SCA, MARGIN_SCA = "+ SCA (the paper's)", "or + margin-SCA"
ASSIGNMENT = f"or + one-to-one assignment among the best {ASSIGNED_AMONG}"
# The score file that each ends in, of the two seeds, and the step before.
STEPS = {
    EMBEDDINGS: ("recipe_{0}.embeddings.npz", None),
    MATCHING: ("recipe_{0}.matching.npz", EMBEDDINGS),
    FUSED: ("recipe_{0}.fused.npz", MATCHING),
    HARD_NEGATIVES: ("hard_negatives_{0}.fused.npz", FUSED),
    OTHER_SEED: ("hard_negatives_{1}.fused.npz", FUSED),
    TWO_MODELS: ("two_models.npz", HARD_NEGATIVES),
    SCA: ("sca.npz", TWO_MODELS),
    MARGIN_SCA: ("margin_sca.npz", TWO_MODELS),
    ASSIGNMENT: ("assignment.npz", TWO_MODELS),
}


def fine_tune(place: Workplace, arguments: argparse.Namespace, kind: str, seed: int) -> dict:
    """A model, its evaluation, whose results are returned, and its score files."""
    row = Row(RECIPE, 3, kind, (0, 0, 0), (), fine_tuned=True, pairs=arguments.pairs)
    name = f"{RECIPE}_{kind}_{seed}"
    folder = Path("fine_tuned", name)
    command = reproduction.fine_tuning_command(row, place, seed, folder, arguments)
    if kind == "hard_negatives":
        command += as_flags({"hard_negatives": True})
    weights = folder / arguments.weights
    reproduction.run_once(place, command, f"fine_tune_{name}", weights, place.model)
    scores = Path("scores", f"{kind}_{seed}.npz")
    flags = {"fusion_weight": arguments.fusion_weight, "write_scores": scores}
    return reproduction.evaluate_once(place, weights, name, flags)


def combine(place: Workplace, seeds: Sequence[int]) -> None:
    """The two models fused, and what resolves their collisions."""
    scores = Path("scores")
    models = [scores / f"hard_negatives_{seed}.fused.npz" for seed in seeds]
    fused = scores / "two_models.npz"
    fuse = [*TPAS, "fuse", *models, "--weights", "0.5", "0.5", "--output", fused]
    run_anew(place, fuse, "fuse_two_models", fused)
    for name, options in (
        ("sca", ["--method", "sca"]),
        ("margin_sca", ["--method", "margin-sca"]),
        ("assignment", ["--method", "assignment", "--top_k", str(ASSIGNED_AMONG)]),
    ):
        reranked = scores / f"{name}.npz"
        command = [*TPAS, "rerank", fused, *options, "--output", reranked]
        run_anew(place, command, f"rerank_{name}", reranked)


def run_anew(place: Workplace, command: list, name: str, product: Path) -> None:
    """Seconds of work whose input may be new: done each time."""
    (place.output_dir / product).unlink(missing_ok=True)
    reproduction.run_once(place, command, name, product, "")


def recalls(place: Workplace, file: str, relevant: dict[str, set[str]]) -> list[float]:
    """Recall@1, @5, @10 in percent of a score file."""
    content = read_score_file(place.output_dir / "scores" / file)
    ranked = [[content.gallery_ids[column] for column in row] for row in content.indices.tolist()]
    shares = [
        [len(relevant[query].intersection(row[:k])) / len(relevant[query]) for k in CUTOFFS]
        for query, row in zip(content.query_ids, ranked, strict=True)
    ]
    return [100 * statistics.fmean(of_queries) for of_queries in zip(*shares, strict=True)]


def table(ladder: dict[str, list[float]], results: dict, miniature: bool) -> str:
    heads = ["", *(f"Recall@{k}" for k in CUTOFFS), "Recall@1, gained"]
    rows = []
    for name, figures in ladder.items():
        before = STEPS[name][1]
        gained = "" if before is None else f"{figures[0] - ladder[before][0]:+.2f}"
        rows.append([name, *(f"{value:.2f}" for value in figures), gained])
    lines = ["# Stronger than the paper, step by step", "", *reproduction.table_lines(heads, rows)]
    lines += [
        "",
        f"In %, {reproduction.shown_data(results)}. Gained: over the step before; for each way to resolve "
        f"collisions, over the two models fused. The paper's best ({PAPER}, Table 3): Recall@1 {PAPER_BEST}.",
    ]
    return "\n".join([*lines, *reproduction.notes([results], miniature)]) + "\n"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=RECIPE, description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", help="folder or Hub id of the TPAS model to start from, with its processor")
    reproduction.add_training_arguments(parser)
    add("--seeds", type=int, nargs=2, default=[42, 43], help="of the two models (default: 42 43)")
    add("--pairs", type=int, default=PAIRS, help=f"to train on; 0: all (default: {PAIRS})")
    add("--fusion_weight", type=float, default=0.5, help="of the embeddings (default: 0.5)")
    arguments = parser.parse_args(argv)
    if arguments.model is None and not arguments.miniature:
        parser.error("give --model (and --data_root), or --miniature")
    if arguments.seeds[0] == arguments.seeds[1]:
        parser.error(f"argument --seeds: two models need two seeds, got {arguments.seeds[0]} twice")
    arguments.pairs = arguments.pairs or None
    return arguments


def main(argv: list[str] | None = None, run: Run = run_logged) -> None:
    arguments = parse_arguments(argv)
    with reproduction.one_line_errors(RECIPE):
        place = reproduction.prepare(arguments, arguments.model, run)
        first, _ = arguments.seeds
        results = fine_tune(place, arguments, "recipe", first)
        for seed in arguments.seeds:
            fine_tune(place, arguments, "hard_negatives", seed)
        combine(place, arguments.seeds)
        benchmark = retrieval_split(load_pab(place.data_root, "test"))
        pairs = zip(benchmark.query_ids, benchmark.relevant, strict=True)
        relevant = {query: set(images) for query, images in pairs}
        files = {name: file.format(*arguments.seeds) for name, (file, _) in STEPS.items()}
        ladder = {name: recalls(place, file, relevant) for name, file in files.items()}
        content = {"recipe": RECIPE, "unit": "percent", "cutoffs": CUTOFFS, "ladder": ladder}
        reproduction.report(place, RECIPE, content, table(ladder, results, place.miniature))


if __name__ == "__main__":
    main()
