"""Recall@k and mean average precision of ranked lists: one self-contained file for `evaluate`.

`evaluate.load("./recall_at_k.py")` loads it offline, on its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from numbers import Integral
from statistics import fmean
from typing import Any

import datasets
import evaluate

DESCRIPTION = """
Recall@k: the mean over all queries of |relevant answers among the best k| / |relevant answers| (Eq. 11 of the
paper on Similarity Coverage Analysis). With one relevant answer a query, the share of queries that find it.
mAP: the mean over all queries of the average precision: the precision at the rank of each relevant answer,
averaged over all relevant ones; one that the list of answers does not hold counts 0.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: for each query its ranked answers, a list of distinct id strings, best first.
    references: for each query its relevant answers, a list of distinct id strings, at least one.
    k: one cutoff or several, each at least 1 and at most the length of the shortest list of answers.
Returns:
    a dict of fractions in [0, 1]: "recall@K" for each K of k, and "mAP" over the lists as they are given.
Raises:
    ValueError, TypeError: where the input breaks the above, naming the position of the query.
Example:
    >>> recall_at_k = evaluate.load("./recall_at_k.py")
    >>> recall_at_k.compute(predictions=[["a", "b"], ["b", "a"]], references=[["a"], ["a"]], k=[1, 2])
    {'recall@1': 0.5, 'recall@2': 1.0, 'mAP': 0.75}
"""


class RecallAtK(evaluate.Metric):
    """Recall@k and mAP from ids; see `DESCRIPTION` and `INPUTS_DESCRIPTION`."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None) -> None:
        """Adds one query."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
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
        super().add_batch(predictions=predictions, references=references)

    def compute(
        self, *, predictions: Any = None, references: Any = None, k: int | Iterable[int] = (1, 5, 10)
    ) -> dict[str, float] | None:
        """Scores the queries given here and those added before, and forgets them."""
        cutoffs = _cutoffs(k)
        scores = super().compute(predictions=predictions, references=references, cutoffs=cutoffs)
        # An error raised in `_compute` would leave evaluate's buffer file behind, locked.
        if scores is not None and "error" in scores:
            raise ValueError(scores["error"])
        return scores

    def _compute(
        self, predictions: list[list[str]], references: list[list[str]], cutoffs: list[int]
    ) -> dict[str, Any]:
        if not predictions:
            return {"error": "there are no queries to score"}
        shortest = min(range(len(predictions)), key=lambda position: len(predictions[position]))
        if len(predictions[shortest]) < max(cutoffs):
            return {
                "error": f"k must be at most the length of each list of answers, got {max(cutoffs)}:"
                f" query {shortest} has {len(predictions[shortest])}"
            }
        recalls: dict[int, list[float]] = {cutoff: [] for cutoff in cutoffs}
        precisions = []
        for ranked, relevant in zip(predictions, references, strict=True):
            wanted = set(relevant)
            hits = [rank for rank, name in enumerate(ranked, start=1) if name in wanted]
            for cutoff, values in recalls.items():
                values.append(sum(rank <= cutoff for rank in hits) / len(wanted))
            precisions.append(sum(found / rank for found, rank in enumerate(hits, start=1)) / len(wanted))
        # fmean rounds once, so the order of the queries cannot change a digit.
        scores = {f"recall@{cutoff}": fmean(values) for cutoff, values in recalls.items()}
        return scores | {"mAP": fmean(precisions)}


def _rows(rows: Any, name: str) -> list[Any]:
    """The rows as a list, each row that is no string as a list."""
    if rows is None or isinstance(rows, str):
        raise TypeError(f"{name} must be a list with a list of ids for each query, got {rows!r}")
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
