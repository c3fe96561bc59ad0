"""Tests whether one system is better than another on the same queries.

    tpas compare zero_shot.json fine_tuned.json
    tpas compare results.json results.json --stage matching sca

Reads what `tpas evaluate --output` wrote, aligns the queries by id, and prints for each figure the
difference, its 95 % bootstrap interval over queries, and the two-sided p-value of a paired permutation test.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..evaluation.stages import Stage
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
    first: Annotated[Path, Argument(metavar="A.json", help="the baseline")],
    second: Annotated[Path, Argument(metavar="B.json", help="what may be better")],
    stage: Annotated[
        list[Stage] | None, Option(help="of both, or of the first and of the second (default: sca)")
    ] = None,
    seed: Annotated[int, Option(help="of the resampling", min=0)] = 0,
    output: Annotated[Path | None, Option(help="write the comparison, JSON")] = None,
) -> CommandResult:
    stages = stage or [Stage.SCA]
    if len(stages) > 2:
        raise WrongUsage(f"--stage takes one stage or two, got {len(stages)}")

    from ..data.whole_files import write_json
    from ..evaluation.result_files import read_outcomes
    from ..evaluation.significance import LEVEL, PERMUTATIONS, RESAMPLES

    systems = read_outcomes(first, stages[0]), read_outcomes(second, stages[-1])
    figures = paired_figures(*systems, seed)
    content = {
        name: {"path": str(system.path), "stage": system.stage}
        for name, system in zip(("first", "second"), systems, strict=True)
    }
    lines = [f"{name}: {of['path']}, {Stage(of['stage']).label}" for name, of in content.items()]
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
