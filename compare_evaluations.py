"""Tests whether one system is better than another on the same queries.

    tpas compare zero_shot.json fine_tuned.json
    tpas compare results.json results.json --stage matching sca

Reads what `tpas evaluate --output` wrote, aligns the queries by id, and prints for each figure the
difference, its 95 % bootstrap interval over queries, and the two-sided p-value of a paired permutation test.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tpas.evaluation.result_files import Outcomes, read_outcomes, write_json
from tpas.evaluation.significance import LEVEL, PERMUTATIONS, RESAMPLES, paired_comparison
from tpas.evaluation.tables import STAGE_NAMES


def compare(first: Outcomes, second: Outcomes, seed: int) -> dict[str, dict[str, float]]:
    """The paired comparison of two systems; see `paired_comparison`.

    Raises:
        ValueError: they were measured on different data, or share no cutoff.
    """
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
    lines = [f"{'':<12}{'first':>8}{'second':>8}{'points':>8}{f'{LEVEL:.0%} interval':>20}{'p':>9}"]
    for name, row in comparison.items():
        interval = f"[{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"
        lines.append(
            f"{name:<12}{100 * row['first']:8.2f}{100 * row['second']:8.2f}{100 * row['difference']:+8.2f}"
            f"{interval:>20}{row['p_value']:9.4f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="tpas compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("first", type=Path, metavar="A.json", help="the baseline")
    add("second", type=Path, metavar="B.json", help="what may be better")
    add(
        "--stage",
        nargs="+",
        choices=list(STAGE_NAMES),
        default=["sca"],
        help="of both, or of the first and of the second (default: sca)",
    )
    add("--seed", type=int, default=0, help="of the resampling (default: 0)")
    add("--output", type=Path, metavar="JSON", help="write the comparison")
    arguments = parser.parse_args(argv)
    if len(arguments.stage) > 2:
        parser.error(f"--stage takes one stage or two, got {len(arguments.stage)}")
    stages = arguments.stage[0], arguments.stage[-1]
    try:
        first, second = (
            read_outcomes(path, stage)
            for path, stage in zip((arguments.first, arguments.second), stages, strict=True)
        )
        comparison = compare(first, second, arguments.seed)
        for which, system in (("first", first), ("second", second)):
            print(f"{which}: {system.path}, {STAGE_NAMES[system.stage]}")
        print(f"{len(first.relevant_ranks):,} queries\n\n{format_comparison(comparison)}")
        if arguments.output:
            content = {
                "first": {"path": str(first.path), "stage": first.stage},
                "second": {"path": str(second.path), "stage": second.stage},
                "data_fingerprint": first.data_fingerprint,
                "queries": len(first.relevant_ranks),
                "settings": {"level": LEVEL, "resamples": RESAMPLES, "permutations": PERMUTATIONS}
                | {"seed": arguments.seed},
                "figures": comparison,
            }
            write_json(arguments.output, content)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error


if __name__ == "__main__":
    main()
