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

from reproduction import (
    PAPER,
    Row,
    Workplace,
    add_common_arguments,
    as_flags,
    fine_tuning_command,
    is_pab,
    notes,
    one_line_errors,
    prepare,
    read_results,
    run_once,
    shown_data,
    table_head,
)
from tpas.commands.demo import TPAS
from tpas.data.pab import load_pab, retrieval_split
from tpas.data.whole_files import write_json, write_text
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
BEFORE = {
    EMBEDDINGS: None,
    MATCHING: EMBEDDINGS,
    FUSED: MATCHING,
    HARD_NEGATIVES: FUSED,
    OTHER_SEED: FUSED,
    TWO_MODELS: HARD_NEGATIVES,
    SCA: TWO_MODELS,
    MARGIN_SCA: TWO_MODELS,
    ASSIGNMENT: TWO_MODELS,
}


def score_files(seeds: Sequence[int]) -> dict[str, str]:
    """The score file that each step ends in."""
    first, second = seeds
    return {
        EMBEDDINGS: f"recipe_{first}.embeddings.npz",
        MATCHING: f"recipe_{first}.matching.npz",
        FUSED: f"recipe_{first}.fused.npz",
        HARD_NEGATIVES: f"hard_negatives_{first}.fused.npz",
        OTHER_SEED: f"hard_negatives_{second}.fused.npz",
        TWO_MODELS: "two_models.npz",
        SCA: "sca.npz",
        MARGIN_SCA: "margin_sca.npz",
        ASSIGNMENT: "assignment.npz",
    }


def fine_tune(place: Workplace, arguments: argparse.Namespace, kind: str, seed: int) -> None:
    """A model, its evaluation and its score files."""
    row = Row(RECIPE, 3, kind, (0, 0, 0), (), fine_tuned=True, pairs=arguments.pairs)
    folder = Path("fine_tuned", f"{RECIPE}_{kind}_{seed}")
    command = fine_tuning_command(row, place, seed, folder, arguments)
    if kind == "hard_negatives":
        command += as_flags({"hard_negatives": True})
    run_once(place, command, f"fine_tune_{RECIPE}_{kind}_{seed}", folder / arguments.weights, place.model)
    weights = folder / arguments.weights
    evaluation = {
        "model": weights,
        "data_root": place.data_root,
        "split": "test",
        "fusion_weight": arguments.fusion_weight,
        "output": Path("evaluation", f"{RECIPE}_{kind}_{seed}", "results.json"),
        "scores": Path("scores", f"{kind}_{seed}.npz"),
    }
    command = [*TPAS, "evaluate", *as_flags(evaluation)]
    run_once(place, command, f"evaluate_{RECIPE}_{kind}_{seed}", evaluation["output"], weights)


def combine(place: Workplace, seeds: Sequence[int]) -> None:
    """The two models fused, and what resolves their collisions."""
    scores = Path("scores")
    models = [scores / f"hard_negatives_{seed}.fused.npz" for seed in seeds]
    fused = scores / "two_models.npz"
    fuse = [
        *TPAS,
        "fuse",
        *models,
        "--weights",
        "0.5",
        "0.5",
        "--output",
        fused,
    ]
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
    run_once(place, command, name, product, "")


def recalls(place: Workplace, file: str, relevant: dict[str, set[str]]) -> list[float]:
    """Recall@1, @5, @10 in percent of a score file."""
    content = read_score_file(place.output_dir / "scores" / file)
    ranked = [[content.gallery_ids[column] for column in row] for row in content.indices.tolist()]
    return [
        100
        * statistics.fmean(
            len(relevant[query].intersection(row[:k])) / len(relevant[query])
            for query, row in zip(content.query_ids, ranked, strict=True)
        )
        for k in CUTOFFS
    ]


def table(ladder: dict[str, list[float]], results: dict, miniature: bool) -> str:
    heads = ["", *(f"Recall@{k}" for k in CUTOFFS), "Recall@1, gained"]
    lines = ["# Stronger than the paper, step by step", "", *table_head(heads)]
    for name, figures in ladder.items():
        gained = "" if BEFORE[name] is None else f"{figures[0] - ladder[BEFORE[name]][0]:+.2f}"
        lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in figures)} | {gained} |")
    lines += [
        "",
        f"In %, {shown_data(results)}. Gained: over the step before; for each way to resolve collisions, "
        f"over the two models fused. The paper's best ({PAPER}, Table 3): Recall@1 {PAPER_BEST}.",
    ]
    return "\n".join([*lines, *notes(not miniature and is_pab([results]), miniature)]) + "\n"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=RECIPE, description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--model", help="folder or Hub id of the TPAS model to start from, with its processor")
    add_common_arguments(parser, "train_accelerate.py")
    add("--config_file", type=Path, help="accelerate's, such as recipes/accelerate/single_gpu.yaml")
    add("--seeds", type=int, nargs=2, default=[42, 43], help="of the two models (default: 42 43)")
    add("--pairs", type=int, default=PAIRS, help=f"to train on; 0: all (default: {PAIRS})")
    add("--fusion_weight", type=float, default=0.5, help="of the embeddings (default: 0.5)")
    add("--weights", choices=["best", "last"], default="best", help="to evaluate (default: best)")
    arguments = parser.parse_args(argv)
    if arguments.model is None and not arguments.miniature:
        parser.error("give --model (and --data_root), or --miniature")
    if arguments.seeds[0] == arguments.seeds[1]:
        parser.error(f"argument --seeds: two models need two seeds, got {arguments.seeds[0]} twice")
    arguments.pairs = arguments.pairs or None
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    with one_line_errors(RECIPE):
        place = prepare(arguments, arguments.model)
        first, second = arguments.seeds
        for kind, seed in (("recipe", first), ("hard_negatives", first), ("hard_negatives", second)):
            fine_tune(place, arguments, kind, seed)
        combine(place, arguments.seeds)
        benchmark = retrieval_split(load_pab(place.data_root, "test"))
        relevant = {
            query: set(images) for query, images in zip(benchmark.query_ids, benchmark.relevant, strict=True)
        }
        ladder = {name: recalls(place, file, relevant) for name, file in score_files(arguments.seeds).items()}
        results = read_results(place, f"{RECIPE}_recipe_{first}")
        shown = table(ladder, results, place.miniature)
        content = {"recipe": RECIPE, "unit": "percent", "cutoffs": CUTOFFS, "ladder": ladder}
        write_json(place.output_dir / f"{RECIPE}.json", content)
        write_text(place.output_dir / f"{RECIPE}.md", shown)
        print(f"\n{shown}")


if __name__ == "__main__":
    main()
