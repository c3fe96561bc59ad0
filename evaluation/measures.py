"""Figures of ranked queries: by group, between the two of a PAB pair, and without labels."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ..data.pab import RetrievalBenchmark
from .recall_at_k import figures_of_ranks, mean_figures

HEADLINE = ("recall@", "mAP")  # what tables, cards and the figures of small groups show
HIT_RATE = "hit_rate@"


def headline(figures: Mapping[str, float]) -> dict[str, float]:
    """Recall@k and mAP of figures that hold more.

    Where several images answer a query, and the hit rates differ from Recall@k, these too: benchmarks of
    identities, such as CUHK-PEDES, call them Rank-k.
    """
    hits = {name: value for name, value in figures.items() if name.startswith(HIT_RATE)}
    differ = any(figures.get(name.replace(HIT_RATE, "recall@")) != value for name, value in hits.items())
    return {
        name: value
        for name, value in figures.items()
        if name.startswith(HEADLINE) or (differ and name in hits)
    }


def query_groups(benchmark: RetrievalBenchmark) -> dict[str, list[int]]:
    """Rows of all queries, and of the normal and the anomalous ones where there are any."""
    behaviours = benchmark.query_behaviours
    groups = {"all": list(range(len(behaviours)))}
    for behaviour in ("normal", "anomaly"):
        rows = [row for row, value in enumerate(behaviours) if value == behaviour]
        if rows:
            groups[behaviour] = rows
    return groups


def query_figures(ranks: Sequence[np.ndarray], k: Sequence[int]) -> list[dict[str, float]]:
    """The figures of each query from the ranks of all its relevant images; see `figures_of_ranks`.

    An infinite rank is of an image that was not ranked: not found.
    """
    return [figures_of_ranks(sorted(map(int, row[np.isfinite(row)])), len(row), k) for row in ranks]


def group_figures(
    figures: Sequence[Mapping[str, float]], groups: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """The mean figures of each group of rows."""
    return {group: mean_figures([figures[row] for row in rows]) for group, rows in groups.items()}


def figures_by_label(
    figures: Mapping[str, Sequence[Mapping[str, float]]], labels: Sequence[str | None]
) -> dict[str, dict]:
    """By label (an action, a scene): the number of its queries, and Recall@k and mAP of each stage.

    Queries without a label are left out.
    """
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        if label is not None:
            rows_of.setdefault(label, []).append(row)
    return {
        label: {
            "queries": len(rows),
            "stages": {
                stage: headline(mean_figures([queries[row] for row in rows]))
                for stage, queries in figures.items()
            },
        }
        for label, rows in sorted(rows_of.items())
    }


def pair_confusion(
    relevant: Sequence[np.ndarray],
    hard_negatives: Sequence[np.ndarray],
    groups: Mapping[str, Sequence[int]],
) -> dict[str, dict[str, float]]:
    """Whether the search tells the two of a pair apart: the right person doing the right thing or the wrong.

    Only queries with a hard negative in the gallery count (see `RetrievalBenchmark`); a group without any is
    left out.

    Args:
        relevant, hard_negatives: of each query, the ranks of its relevant images and of its hard negatives.

    Returns:
        By group "queries" (their number) and four fractions: the first answer is "right", or the
        "hard_negative", or some "other" image (these three make 1); and "right_before_hard_negative", whether
        the first relevant image comes before every hard negative, wherever in the ranking that is.
    """
    measures = {}
    for group, rows in groups.items():
        firsts = np.array(
            [(relevant[row].min(), hard_negatives[row].min()) for row in rows if len(hard_negatives[row])]
        )  # (n, 2)
        if len(firsts):
            right, hard_negative = float((firsts[:, 0] == 1).mean()), float((firsts[:, 1] == 1).mean())
            measures[group] = {
                "queries": len(firsts),
                "right": right,
                "hard_negative": hard_negative,
                "other": float((firsts > 1).all(axis=1).mean()),
                "right_before_hard_negative": float((firsts[:, 0] < firsts[:, 1]).mean()),
            }
    return measures


def first_answers(indices: Tensor) -> dict[str, float]:
    """What the first answers of lists (Q, K) say without labels.

    "coverage": different first answers / queries; where each query has one right image of its own, Recall@1
    cannot be higher. "collision_rate": the share of the queries whose first answer is another's as well.
    """
    claims = np.unique(indices[:, 0].numpy(), return_counts=True)[1]
    return {
        "coverage": len(claims) / len(indices),
        "collision_rate": float(claims[claims > 1].sum() / len(indices)),
    }
