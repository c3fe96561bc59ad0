"""Measures score files of any system on a retrieval benchmark: no model is needed for it."""

import logging
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..data.pab import RetrievalBenchmark
from ..reranking.ranked_lists import tie_order
from ..reranking.score_files import ScoreFile, align_gallery, align_queries
from ..sca import best_columns, scored_candidates
from .retrieval import EvaluationResult, measured, watched_images
from .settings import CUTOFFS

logger = logging.getLogger(__name__)

LISTED = 128  # images of a dense file's lists: as many as are re-ranked


def measure_scores(
    files: Mapping[str, ScoreFile],
    benchmark: RetrievalBenchmark,
    about: str,
    *,
    k: Sequence[int] | None = None,
) -> EvaluationResult:
    """The figures of each file, in the place of a stage's, by its name.

    Queries and images are matched by name. What a file does not rank, or only fills up
    ([`tpas.sca.filling_of`]), comes after all that it does: a right image among it is not found. Equal scores
    of a dense file are ordered as everywhere, by a hash of the image's name; a list is taken as it stands.

    Args:
        about: what the benchmark is called where names do not fit.
        k: cutoffs; `None`: those of 1, 5 and 10 that the longest list of each file has.

    Raises:
        ValueError: a file is about other queries or images, or a k is beyond a file's longest list.
    """
    ties = tie_order(benchmark.gallery_ids)
    in_order = tuple(benchmark.gallery_ids[place] for place in ties)
    place_in_order = np.argsort(ties)  # (G,)
    watched = [place_in_order[images] for images in watched_images(benchmark)]
    queries = tuple(benchmark.query_ids)
    rankings, scores, ranks, moved = {}, {}, {}, np.zeros(len(queries), dtype=bool)
    longest = len(in_order)
    for name, file in files.items():
        file = align_gallery(align_queries(file, name, queries, about), name, in_order, about)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said below, of each file by its name
            images, values, scored = scored_candidates(file.indices, file.scores)
        if images is None:
            images = best_columns(values, min(LISTED, len(in_order)))
            ranks[name] = [_ranks_in_row(*row) for row in zip(values, watched, strict=True)]
            values = np.take_along_axis(values, images, axis=1)
        else:
            longest = min(longest, images.shape[1])
            ranks[name] = [_ranks_in_list(*row) for row in zip(images, scored, watched, strict=True)]
        _report(name, scored, len(in_order), ranks[name], benchmark)
        rankings[name] = torch.from_numpy(np.asarray(ties)[images])
        scores[name] = torch.from_numpy(values.astype(np.float64))
        if file.moved is not None:
            moved |= file.moved
    return measured(
        benchmark,
        _cutoffs(k, longest),
        ranks,
        rankings=rankings,
        scores=scores,
        final_stage=list(files)[-1],
        shortlist=max(lists.shape[1] for lists in rankings.values()),
        fusion_weight=0.0,
        sca=None,
        moved=torch.from_numpy(moved),
        sca_report=None,
    )


def _ranks_in_row(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The ranks of some images by all values (G,), equal ones by column."""
    own = values[images, None]
    earlier = np.arange(len(values)) < images[:, None]
    return 1 + (values > own).sum(axis=1) + ((values == own) & earlier).sum(axis=1)


def _ranks_in_list(listed: np.ndarray, scored: int, images: np.ndarray) -> np.ndarray:
    """The ranks of some images in the first `scored` of a list (K,); infinite of those that are not there."""
    places = listed[None, :scored] == images[:, None]
    found = places.any(axis=1)
    ranks = places.argmax(axis=1) + 1
    return ranks if found.all() else np.where(found, ranks, np.inf)


def _report(
    name: str, scored: np.ndarray, gallery: int, ranks: Sequence[np.ndarray], benchmark: RetrievalBenchmark
) -> None:
    """Says how much of the gallery a file ranks, and what that costs."""
    if scored.min() == gallery:
        return
    relevant = [row[: len(ids)] for row, ids in zip(ranks, benchmark.relevant, strict=True)]
    lost = sum(int(np.isinf(row).sum()) for row in relevant)
    most = "" if scored.min() == scored.max() else f" to {scored.max():,}"
    logger.info(
        f"{name} ranks {scored.min():,}{most} of {gallery:,} images for a query: {lost:,} of "
        f"{sum(map(len, relevant)):,} right ones are not among them, and count as not found"
    )


def _cutoffs(k: Sequence[int] | None, longest: int) -> list[int]:
    if k is None:
        return [cutoff for cutoff in CUTOFFS if cutoff <= longest]
    for cutoff in k:
        if not 1 <= cutoff <= longest:
            raise ValueError(
                f"k must be between 1 and {longest}, the length of the longest list of a file, got {cutoff}"
            )
    return sorted(set(k))
