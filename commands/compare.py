"""Tests whether one system is better than another on the same queries.

    tpas compare zero_shot.json fine_tuned.json
    tpas compare results.json results.json --stage matching sca
    tpas compare ours.npz theirs.trec --data_root PAB

Reads what `tpas evaluate --output` wrote, or score files, aligns the queries by id, and prints for each
figure the difference, its 95 % bootstrap interval over queries, and the two-sided p-value of a paired
permutation test.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..data.annotation_fields import EvaluatedSplit
from ..evaluation.stages import label_of
from ..reranking.score_files import SUFFIXES
from .command_line import CommandLine, CommandResult, WrongUsage

if TYPE_CHECKING:
    from ..evaluation.result_files import Outcomes

app = CommandLine("tpas compare", __doc__)


def paired_figures(first: "Outcomes", second: "Outcomes", seed: int) -> dict[str, dict[str, float]]:
    """The paired comparison of two systems; see `paired_comparison`.

    Raises:
        ValueError: they were measured on different data, or share no cutoff.
    """
    from ..evaluation.significance import paired_comparison

    if first.data_fingerprint != second.data_fingerprint:
        raise ValueError(
            f"{first.path} (data {first.data_fingerprint}) and {second.path} (data "
            f"{second.data_fingerprint}) were measured on different queries, galleries or relevance: "
            "evaluate both on the same"
        )
    if difference := sorted(first.relevant_ranks.keys() ^ second.relevant_ranks.keys()):
        raise ValueError(f"{first.path} and {second.path}: only one of them has query {difference[0]}")
    cutoffs = sorted(set(first.k) & set(second.k))
    if not cutoffs:
        raise ValueError(f"{first.path} has Recall@k for k in {first.k}, {second.path} for {second.k}")
    query_ids = sorted(first.relevant_ranks)
    return paired_comparison(first.figures(query_ids, cutoffs), second.figures(query_ids, cutoffs), seed=seed)


def outcomes_of_scores(path: Path, data_root: Path, split: EvaluatedSplit) -> "Outcomes":
    """What a score file of any system is worth on these data, query by query."""
    from ..data.pab import retrieval_split
    from ..data.retrieval_data import RetrievalData
    from ..evaluation.result_files import Outcomes
    from ..evaluation.scored import measure_scores
    from ..reranking.score_files import read_score_file

    file = read_score_file(path)
    data = RetrievalData.open(data_root)
    benchmark = retrieval_split(data.pairs(split))
    result = measure_scores({str(path): file}, benchmark, f"the {split} split of {data_root}")
    ranks = dict(zip(benchmark.query_ids, result.relevant_ranks[str(path)], strict=True))
    return Outcomes(path, data.name, benchmark.fingerprint, path.name, result.k, ranks)


def format_comparison(comparison: dict[str, dict[str, float]]) -> str:
    """Aligned rows of text, figures in percent, differences in points."""
    from ..evaluation.significance import LEVEL

    lines = [f"{'':<12}{'first':>8}{'second':>8}{'points':>8}{f'{LEVEL:.0%} interval':>20}{'p':>9}"]
    for name, row in comparison.items():
        interval = f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
        lines.append(
            f"{name:<12}{100 * row['first']:8.2f}{100 * row['second']:8.2f}{100 * row['difference']:+8.2f}"
            f"{interval:>20}{row['p_value']:9.4f}"
        )
    return "\n".join(lines)


@app.command()
def compare(
    first: Annotated[Path, Argument(metavar="A", help="the baseline: results, .json, or a score file")],
    second: Annotated[Path, Argument(metavar="B", help="what may be better")],
    stage: Annotated[
        list[str] | None,
        Option(
            help="of both, or of the first and of the second: a stage, or the name of a score file that was "
            "measured (default: sca, or the last)"
        ),
    ] = None,
    data_root: Annotated[Path | None, Option(help="of score files: the data, as of tpas evaluate")] = None,
    split: Annotated[EvaluatedSplit, Option(help="with it")] = "test",
    seed: Annotated[int, Option(help="of the resampling", min=0)] = 0,
    output: Annotated[Path | None, Option(help="write the comparison, JSON")] = None,
) -> CommandResult:
    stages = stage or [None]
    if len(stages) > 2:
        raise WrongUsage(f"--stage takes one stage or two, got {len(stages)}")
    paths = first, second
    scored = [path for path in paths if path.suffix in SUFFIXES]
    if scored and data_root is None:
        raise WrongUsage(f"{scored[0]}: a score file has no labels: give --data_root, the data it is about")
    if data_root is not None and not scored:
        raise WrongUsage("--data_root is for score files: results say what they were measured on")
    if len(scored) == 2 and stage:
        raise WrongUsage("--stage is for results: a score file is one stage")
    for path in paths:
        path.open("rb").close()  # what is not there is said before torch is loaded

    from ..data.whole_files import write_json
    from ..evaluation.result_files import Outcomes, read_outcomes
    from ..evaluation.significance import LEVEL, PERMUTATIONS, RESAMPLES

    systems: list[Outcomes] = []
    for path, of_path in zip(paths, (stages[0], stages[-1]), strict=True):
        if path in scored:
            assert data_root is not None  # as checked above
            systems.append(outcomes_of_scores(path, data_root, split))
        else:
            systems.append(read_outcomes(path, of_path))
    figures = paired_figures(systems[0], systems[1], seed)
    content = {
        name: {"path": str(system.path), "stage": system.stage}
        for name, system in zip(("first", "second"), systems, strict=True)
    }
    lines = [
        f"{name}: {of['path']}" + ("" if path in scored else f", {label_of(of['stage'])}")
        for path, (name, of) in zip(paths, content.items(), strict=True)
    ]
    queries = len(systems[0].relevant_ranks)
    data = {system.dataset_name for system in systems if system.dataset_name}
    content |= {"dataset_name": data.pop()} if len(data) == 1 else {}  # of one content, whatever its names
    on = f"{content['dataset_name']}, " if "dataset_name" in content else ""
    lines.append(f"{on}{queries:,} queries\n\n{format_comparison(figures)}")
    content |= {
        "data_fingerprint": systems[0].data_fingerprint,
        "queries": queries,
        "settings": {"level": LEVEL, "resamples": RESAMPLES, "permutations": PERMUTATIONS, "seed": seed},
        "figures": figures,
    }
    if output is not None:
        write_json(output, content)
    return CommandResult(content, "\n".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
