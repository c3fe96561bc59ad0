"""Fusion of several systems' scores for the same queries and images: weighted sum and reciprocal rank.

Rows are queries, in the same order in every array; images are numbers that mean the same in every array.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..sca import best_columns, blocks, check_count, scored_candidates


@dataclass(frozen=True, eq=False)
class SystemScores:
    """One system's scores for Q queries.

    Attributes:
        scores: (Q, G), column g belonging to image g, or (Q, K), descending.
        indices: (Q, K) images, none twice in a row, or `None` if `scores` is dense.
    """

    scores: np.ndarray
    indices: np.ndarray | None = None


def standardise(scores: np.ndarray, scored: np.ndarray | None = None) -> np.ndarray:
    """Each row of scores (Q, K) at mean 0 and deviation 1, in double precision; a constant row becomes 0.

    Of a row only the first `scored` (Q,) count; the others become its least.
    """
    scores = scores.astype(np.float64)
    if scored is not None and (scored < scores.shape[1]).any():
        z = [standardise(row[None, :count])[0] for row, count in zip(scores, scored, strict=True)]
        return np.stack([np.pad(row, (0, scores.shape[1] - len(row)), "minimum") for row in z])
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True))
    # Rounding may leave a constant row a tiny deviation, which must not be blown up.
    constant = scores.max(axis=1, keepdims=True) == scores.min(axis=1, keepdims=True)
    return np.where(constant, 0.0, centred / np.where(constant, 1.0, deviation))


def weighted_sum(
    systems: Sequence[SystemScores], weights: Sequence[float], *, top_k: int | None = None
) -> SystemScores:
    """The weighted sum of z-normalised scores.

    A system's scores of a query are brought to mean 0 and deviation 1 over the images that it scores for this
    query. Candidates are the images that any system scores. One that a system does not list counts with the
    lowest score that this system gives the query: its own, if known, could not be higher. Where all scores of
    a system for a query are equal, as in a list of one image, they tell nothing apart and add 0: for lists of
    one image each the sum is 0, and ties are resolved by image number.

    Args:
        systems: of the same queries and images.
        weights: >= 0, one for each system, not all 0.
        top_k: how many images to return for each query; of lists alone at most the longest list's. `None`: a
            dense matrix if a system is dense, otherwise lists as long as the longest.

    Returns:
        Single-precision scores, dense or descending in lists; equal scores by image number.

    Raises:
        ValueError, TypeError: where the arguments break the above.

    Warns:
        UserWarning: of scores that only fill up a system's matrix, as X-VLM's -100 does
            ([`tpas.sca.filling_of`]); it then counts as the lists that were scored.
    """
    if len(weights) != len(systems):
        raise ValueError(f"weights must be one for each of the {len(systems)} systems, got {len(weights)}")
    if not all(weight >= 0 and math.isfinite(weight) for weight in weights) or not any(weights):
        raise ValueError(f"weights must be finite, at least 0 and not all 0, got {list(weights)}")

    systems, scored = _scored(systems)

    def weighted(number: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        system = systems[number]
        z = weights[number] * standardise(system.scores[rows], scored[number][rows])
        least = np.zeros(len(z)) if system.indices is None else z.min(axis=1)
        return least, z - least[:, None]

    return _fuse(systems, weighted, top_k)


def reciprocal_rank(
    systems: Sequence[SystemScores], *, constant: int = 60, top_k: int | None = None
) -> SystemScores:
    """Reciprocal rank fusion: the sum over the systems of 1 / (constant + rank), ranks counted from 1.

    Cormack, Clarke and Buettcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
    methods" (2009). A system adds nothing to an image that it does not list. Equal scores of a dense matrix
    are ranked by image number.

    Args:
        systems, top_k: as in [`weighted_sum`], and so are the result and the errors.
        constant: >= 0; the greater, the less the first ranks stand out.
    """
    check_count("constant", constant, 0)
    systems, scored = _scored(systems)

    def reciprocal(number: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        system = systems[number]
        scores = system.scores[rows]
        by_rank = np.broadcast_to(1 / (constant + 1.0 + np.arange(scores.shape[1])), scores.shape)
        if system.indices is None:
            order = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")
            added = np.empty(scores.shape)
            np.put_along_axis(added, order, by_rank, axis=1)
            by_rank = added
        by_rank = np.where(np.arange(scores.shape[1]) < scored[number][rows, None], by_rank, 0)
        return np.zeros(len(scores)), by_rank

    return _fuse(systems, reciprocal, top_k)


def _scored(systems: Sequence[SystemScores]) -> tuple[list[SystemScores], list[np.ndarray]]:
    """The systems without what only fills up their scores, and how many of each row were scored, (Q,)."""
    galleries = {system.scores.shape[1] for system in systems if system.indices is None}
    if len({len(system.scores) for system in systems}) != 1 or len(galleries) > 1:
        shapes = ", ".join(str(system.scores.shape) for system in systems)
        raise ValueError(f"systems must have scored the same queries and images, got shapes {shapes}")
    candidates = [scored_candidates(system.indices, system.scores) for system in systems]
    return (
        [SystemScores(scores, indices) for indices, scores, _ in candidates],
        [scored for _, _, scored in candidates],
    )


def _fuse(
    systems: Sequence[SystemScores],
    share: Callable[[int, slice], tuple[np.ndarray, np.ndarray]],
    top_k: int | None,
) -> SystemScores:
    """Sums the systems' shares: (n,) for every image of n queries, and (n, K or G) more for those scored."""
    dense_systems = any(system.indices is None for system in systems)
    longest = max(system.scores.shape[1] for system in systems)
    if top_k is not None:
        check_count("top_k", top_k, 1)
        if top_k > longest:
            raise ValueError(f"top_k must be at most {longest}, the candidates given, got {top_k}")

    scored = sum(system.scores.shape[1] for system in systems)
    dense = dense_systems and top_k is None
    length = top_k or longest
    scores = np.empty((len(systems[0].scores), length), dtype=np.float32)
    indices = np.empty(scores.shape, dtype=np.int64)
    for rows in blocks(len(scores), scored):
        shares = [share(number, rows) for number in range(len(systems))]
        if not dense_systems:
            lists = [system.indices[rows] for system in systems if system.indices is not None]
            indices[rows], scores[rows] = _best_of_lists(lists, shares, length)
            continue
        total = np.zeros((len(shares[0][0]), longest))
        for system, (everywhere, listed) in zip(systems, shares, strict=True):
            total += everywhere[:, None]
            if system.indices is None:
                total += listed
            else:  # no image is in a row twice
                total[np.arange(len(total))[:, None], system.indices[rows]] += listed
        total = total.astype(np.float32)
        if dense:
            scores[rows] = total
        else:
            indices[rows] = best_columns(total, length)
            scores[rows] = np.take_along_axis(total, indices[rows], axis=1)
    return SystemScores(scores, None if dense else indices)


def _best_of_lists(
    lists: list[np.ndarray], shares: list[tuple[np.ndarray, np.ndarray]], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `length` of all images in n queries' lists: images and scores, (n, length) both."""
    images = np.concatenate(lists, axis=1).astype(np.int64)  # (n, all candidates of all systems)
    listed = np.concatenate([more for _, more in shares], axis=1)
    everywhere = sum((base for base, _ in shares), np.zeros(len(listed)))  # (n,)
    names, images = np.unique(images, return_inverse=True)  # as numbers so small that rows times them fit
    rows = np.arange(len(everywhere))[:, None]
    candidates, number = np.unique(rows * len(names) + images.reshape(listed.shape), return_inverse=True)
    row, image = candidates // len(names), candidates % len(names)
    total = np.bincount(number.ravel(), weights=listed.ravel()) + everywhere[row]
    total = total.astype(np.float32)
    order = np.lexsort((image, -total, row))
    starts = np.searchsorted(row, rows[:, 0])  # `row` ascends in `candidates`, as after sorting
    best = order[starts[:, None] + np.arange(length)]  # each row has at least the longest list's candidates
    return names[image[best]], total[best]


def check_fusion_weight(fusion_weight: float) -> None:
    """Raises ValueError for a weight that is not between 0 and 1."""
    if not 0 <= fusion_weight <= 1:
        raise ValueError(f"the fusion weight must be between 0 (matching alone) and 1, got {fusion_weight}")
