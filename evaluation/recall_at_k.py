"""Figures of ranked lists from ids alone: one self-contained file for `evaluate`.

`evaluate.load("./evaluation/recall_at_k.py")` loads it offline, on its own. The formulas have
their one home in `figures_of_ranks`; whoever has ranks and no lists calls that.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from statistics import fmean, median
from typing import Any

import datasets
import evaluate

DESCRIPTION = """
Recall@k: the mean over all queries of |relevant answers among the best k| / |relevant answers| (Eq. 11 of the
paper on Similarity Coverage Analysis). With one relevant answer a query, the share of queries that find it.
mAP: the mean over all queries of the average precision: the precision at the rank of each relevant answer,
averaged over all relevant ones; one that the list of answers does not hold counts 0.
With `detailed`: hit rate@k, the share of queries with a relevant answer among the best k (what leaderboards
call Recall@k; it differs where a query has several relevant answers); mINP, the mean inverse negative penalty
(Ye et al. 2021, Deep Learning for Person Re-identification): |relevant answers| / rank of the last of them, 0
where the list does not hold all; and the median over the queries of the rank of the first relevant answer.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: for each query its answers, a list of distinct id strings, best first (with `scores`: in any
        order).
    references: for each query its relevant answers, a list of distinct id strings, at least one.
    scores: for each query a list of finite numbers, one for each of its predictions, greater for better. Then
        the answers are ranked by them and equal scores by a hash of the id, so the order in which the answers
        come never helps. `None`: the predictions are ranked already.
    k: one cutoff or several, each at least 1 and at most the length of the shortest list of answers.
    detailed: whether to add the figures beyond Recall@k and mAP.
Returns:
    a dict of fractions in [0, 1]: "recall@K" for each K of k, and "mAP" over the lists as they are given;
    with `detailed` also "hit_rate@K", "mINP" and "median_rank", a rank from 1 (inf where half of the lists
    or more hold no relevant answer). In a process that is not the main one of several: `None`.
Raises:
    ValueError, TypeError: where the input breaks the above, naming the position of the query.
Example:
    >>> recall_at_k = evaluate.load("./evaluation/recall_at_k.py")
    >>> recall_at_k.compute(predictions=[["a", "b"], ["b", "a"]], references=[["a"], ["a"]], k=[1, 2])
    {'recall@1': 0.5, 'recall@2': 1.0, 'mAP': 0.75}
"""


class RecallAtK(evaluate.Metric):
    """Recall@k, mAP and their relatives from ids; see `DESCRIPTION` and `INPUTS_DESCRIPTION`."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, scores: Any = None) -> None:
        """Adds one query."""
        self.add_batch(
            predictions=[prediction], references=[reference], scores=None if scores is None else [scores]
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, scores: Any = None) -> None:
        """Adds some queries, or none of them if one is refused."""
        predictions, references = _rows(predictions, "predictions"), _rows(references, "references")
        if len(predictions) != len(references):
            raise ValueError(
                f"predictions and references must be as many, got {len(predictions)} and {len(references)}:"
                f" query {min(len(predictions), len(references))} has only one of them"
            )
        # evaluate itself would turn numbers into strings and let None pass.
        for name, rows in (("prediction", predictions), ("reference", references)):
            for position, ids in enumerate(rows, start=len(self)):
                _check_ids(ids, f"{name} of query {position}")
        for position, relevant in enumerate(references, start=len(self)):
            if not relevant:
                raise ValueError(f"query {position} has no relevant id: its recall is not defined")
        if scores is not None:
            predictions = self._ranked(predictions, scores)
        super().add_batch(predictions=predictions, references=references)

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        scores: Any = None,
        k: int | Iterable[int] = (1, 5, 10),
        detailed: bool = False,
    ) -> dict[str, float] | None:
        """Scores the queries given here and those added before, and forgets them."""
        cutoffs = _cutoffs(k)
        if scores is not None:
            predictions = self._ranked(_rows(predictions, "predictions"), scores)
        figures = super().compute(
            predictions=predictions, references=references, cutoffs=cutoffs, detailed=detailed
        )
        # An error raised in `_compute` would leave evaluate's buffer file behind, locked.
        if figures is not None and "error" in figures:
            raise ValueError(figures["error"])
        return figures

    def _compute(
        self, predictions: list[list[str]], references: list[list[str]], cutoffs: list[int], detailed: bool
    ) -> dict[str, Any]:
        if not predictions:
            return {"error": "there are no queries to score"}
        shortest = min(range(len(predictions)), key=lambda position: len(predictions[position]))
        if len(predictions[shortest]) < max(cutoffs):
            return {
                "error": f"k must be at most the length of each list of answers, got {max(cutoffs)}:"
                f" query {shortest} has {len(predictions[shortest])}"
            }
        queries = []
        for ranked, relevant in zip(predictions, references, strict=True):
            wanted = set(relevant)
            ranks = [rank for rank, name in enumerate(ranked, start=1) if name in wanted]
            queries.append(figures_of_ranks(ranks, len(wanted), cutoffs))
        figures = mean_figures(queries)
        if detailed:
            return figures
        return {name: value for name, value in figures.items() if name.startswith("recall@") or name == "mAP"}

    def _ranked(self, predictions: list[Any], scores: Any) -> list[list[str]]:
        """Each query's predictions by their scores."""
        scores = _rows(scores, "scores")
        if len(scores) != len(predictions):
            raise ValueError(
                f"scores and predictions must be as many, got {len(scores)} and {len(predictions)}: query "
                f"{len(self) + min(len(scores), len(predictions))} has only one of them"
            )
        ranked = []
        for position, (ids, values) in enumerate(zip(predictions, scores, strict=True), start=len(self)):
            _check_ids(ids, f"prediction of query {position}")
            if not isinstance(values, list) or len(values) != len(ids):
                count = len(values) if isinstance(values, list) else repr(values)
                raise ValueError(f"query {position} needs a score for each of {len(ids)} ids, got {count}")
            for value in values:
                if not isinstance(value, Real) or not math.isfinite(value):
                    raise ValueError(f"the scores of query {position} must be finite numbers, got {value!r}")
            ranked.append(rank_by_score(ids, values))
        return ranked


def rank_by_score(ids: Sequence[str], scores: Sequence[float]) -> list[str]:
    """The ids, greatest score first; equal scores by a hash of the id, as the search ranks its gallery.

    Neither the order of rows nor that of names may resolve a tie: PAB's files list a normal and an anomalous
    image in turn, and their names say which is which.
    """
    by_digest = sorted(zip(scores, ids, strict=True), key=lambda pair: (_digest(pair[1]), pair[1]))
    # Stable also in reverse; scores are not negated, because unsigned numbers would wrap round.
    return [name for _, name in sorted(by_digest, key=lambda pair: pair[0], reverse=True)]


def figures_of_ranks(ranks: Sequence[int], relevant: int, k: Iterable[int]) -> dict[str, float]:
    """The figures of one query; `mean_figures` makes those of many.

    Args:
        ranks: from 1 and ascending, the ranks of the relevant answers that were found.
        relevant: the number of all relevant answers, found or not, at least 1.
        k: the cutoffs.

    Returns:
        "recall@K" and "hit_rate@K" for each K of k, "mAP" (the average precision), "mINP" (the inverse
        negative penalty) and "median_rank" (the first rank, inf without one).
    """
    cutoffs = list(k)
    within = {cutoff: sum(rank <= cutoff for rank in ranks) for cutoff in cutoffs}
    return (
        {f"recall@{cutoff}": within[cutoff] / relevant for cutoff in cutoffs}
        | {f"hit_rate@{cutoff}": float(within[cutoff] > 0) for cutoff in cutoffs}
        | {
            "mAP": sum(found / rank for found, rank in enumerate(ranks, start=1)) / relevant,
            "mINP": relevant / ranks[-1] if len(ranks) == relevant else 0.0,
            "median_rank": float(ranks[0]) if ranks else math.inf,
        }
    )


def mean_figures(queries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means of the figures of at least one query, and the median of "median_rank".

    `fmean` rounds once, so the order of the queries cannot change a digit.
    """
    return {
        name: (median if name == "median_rank" else fmean)([figures[name] for figures in queries])
        for name in queries[0]
    }


def _digest(name: str) -> bytes:
    """What `tpas.reranking.ranked_lists.tie_key` is; `evaluate` loads this file alone."""
    return hashlib.blake2b(name.encode()).digest()


def _rows(rows: Any, name: str) -> list[Any]:
    """The rows as a list, each row that is no string as a list; arrays and tensors as plain values."""
    if rows is None or isinstance(rows, str):
        raise TypeError(f"{name} must be a list with a list for each query, got {rows!r}")
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    return [row if isinstance(row, str) or not isinstance(row, Iterable) else list(row) for row in rows]


def _check_ids(ids: Any, owner: str) -> None:
    if not isinstance(ids, list):
        raise TypeError(f"the {owner} must be a list of id strings, got {ids!r}")
    for name in ids:
        if not isinstance(name, str):
            raise TypeError(f"the {owner} must hold strings only, got {name!r}")
    if len(set(ids)) != len(ids):
        repeated, times = Counter(ids).most_common(1)[0]
        raise ValueError(f"the {owner} must hold distinct ids, got {repeated!r} {times} times")


def _cutoffs(k: int | Iterable[int]) -> list[int]:
    """The cutoffs in the order given."""
    cutoffs = [k] if isinstance(k, Integral) or not isinstance(k, Iterable) else list(k)
    if not cutoffs:
        raise ValueError("k must hold at least one cutoff")
    for cutoff in cutoffs:
        if isinstance(cutoff, bool) or not isinstance(cutoff, Integral):
            raise TypeError(f"k must be an integer or several, got {cutoff!r}")
        if cutoff < 1:
            raise ValueError(f"k must be at least 1, got {cutoff}")
    return [int(cutoff) for cutoff in cutoffs]
