"""Ranked lists: how ties are ordered, and what every re-ranker returns.

Re-rankers are called as [`tpas.sca.sca_rerank`] is: `indices` (Q, K) and `scores` (Q, K), or `None` and a
dense matrix (Q, G); numpy arrays or torch tensors in, the same kind out.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..sca import as_given, best_columns, checked_top_k, claims, put_first


def tie_key(image_id: str) -> bytes:
    """Of two images with equal scores the one with the smaller key comes first.

    It is a hash, because file names of a benchmark may say which image is right, and rows follow names, so
    neither may decide. (`evaluation/recall_at_k.py` has it once more: `evaluate` loads that file alone.)
    """
    return hashlib.blake2b(image_id.encode()).digest()


def tie_order(image_ids: Sequence[str]) -> list[int]:
    """The places of the ids in the order of their `tie_key`."""
    keys = list(map(tie_key, image_ids))
    return sorted(range(len(keys)), key=keys.__getitem__)


def in_tie_order(image_ids: Sequence[str]) -> tuple[str, ...]:
    """The ids so that a search for the best columns ranks equal scores as everywhere."""
    return tuple(image_ids[place] for place in tie_order(image_ids))


@dataclass(frozen=True)
class RerankReport:
    """What a re-ranker found and did, in plain numbers (`dataclasses.asdict` of it is JSON).

    Attributes:
        method: the name of the re-ranker.
        transductive: whether a query's answer depends on the other queries. One that is not transductive also
            serves a single live query.
        queries: the number of queries.
        collisions_before, collisions_after, coverage_before, coverage_after, moved: as in
            [`tpas.sca.SCAReport`].
    """

    method: str
    transductive: bool
    queries: int
    collisions_before: int
    collisions_after: int
    coverage_before: float
    coverage_after: float
    moved: int


@dataclass(frozen=True, eq=False)
class RerankResult:
    """What a re-ranker returns: numpy arrays, or tensors on the same device for what was given as tensors.

    Attributes:
        indices: (Q, K) images, best first.
        scores: (Q, K). Re-rankers that move one answer to the front leave each image its own score; those
            that give new scores return them, descending, in single precision at least.
        moved: (Q,) bool, whether the query's first answer changed.
        report: the counts.
    """

    indices: Any
    scores: Any
    moved: Any
    report: RerankReport


def answers_put_first(
    method: str,
    images: np.ndarray,
    values: np.ndarray,
    place: np.ndarray,
    capacity: int,
    indices: Any,
    scores: Any,
) -> RerankResult:
    """The lists `images` (Q, K) and `values` (Q, K) with the candidate at `place` (Q,) first.

    `indices` and `scores` are what the caller was given: the result is of their kind.
    """
    new_images = put_first(images, place)
    return RerankResult(
        indices=as_given(new_images, scores if indices is None else indices),
        scores=as_given(put_first(values, place), scores),
        moved=as_given(place > 0, scores),
        report=_report(method, True, images[:, 0], new_images[:, 0], capacity),
    )


def rescored(
    method: str,
    images: np.ndarray | None,
    values: np.ndarray,
    new_values: np.ndarray,
    top_k: int | None,
    indices: Any,
    scores: Any,
    *,
    transductive: bool = True,
    capacity: int = 1,
) -> RerankResult:
    """The best `top_k` by the new scores; equal ones keep their order, or that of a dense matrix's columns.

    Args:
        images: (Q, K), or `None` for a dense matrix.
        values: the scores before, (Q, K) or (Q, G).
        new_values: the scores after, of the same shape, and of `new_score_type`.
        indices, scores: what the caller was given: the result is of their kind.
    """
    top_k = checked_top_k(top_k, values)
    if images is None:
        first = values.argmax(axis=1)
        new_images = best_columns(new_values, top_k)
        new_scores = np.take_along_axis(new_values, new_images, axis=1)
    else:
        first = images[:, 0]
        order = np.argsort(-new_values, axis=1, kind="stable")[:, :top_k]
        new_images = np.take_along_axis(images, order, axis=1)
        new_scores = np.take_along_axis(new_values, order, axis=1)
    return RerankResult(
        indices=as_given(new_images, scores if indices is None else indices),
        scores=as_given(new_scores, scores, keep_type=False),
        moved=as_given(new_images[:, 0] != first, scores),
        report=_report(method, transductive, first, new_images[:, 0], capacity),
    )


def new_score_type(values: np.ndarray) -> np.dtype:
    """The type of computed scores: that of the scores given, but single precision at least."""
    return np.result_type(values.dtype, np.float32)


def _report(
    method: str, transductive: bool, first: np.ndarray, new_first: np.ndarray, capacity: int
) -> RerankReport:
    before, after = claims(first[:, None]), claims(new_first[:, None])
    return RerankReport(
        method=method,
        transductive=transductive,
        queries=len(first),
        collisions_before=int(before[before > capacity].sum()),
        collisions_after=int(after[after > capacity].sum()),
        coverage_before=len(before) / len(first),
        coverage_after=len(after) / len(first),
        moved=int((new_first != first).sum()),
    )
