"""Measures a model on a retrieval benchmark, stage by stage."""

import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from ..data.pab import RetrievalBenchmark
from ..data.pab_images import ImageFiles
from ..models.interface import ImageMatcher, RetrievalModel, RetrievalProcessor
from ..reranking.fusion import check_fusion_weight
from ..sca import SCAReport
from ..search.arguments import DEFAULT_MATCHER_SHORTLIST
from ..search.ranking import resolve_shortlist
from .measures import (
    figures_by_label,
    first_answers,
    group_figures,
    pair_confusion,
    query_figures,
    query_groups,
)
from .ranking import TOKEN_MEMORY, rank_gallery
from .settings import CUTOFFS, SCASettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` measured, or `measure_scores`.

    Attributes:
        stages: by stage, or the name of a score file, by "all", "normal" and "anomaly" (absent without such
            queries), by "recall@k", "hit_rate@k", "mAP" and "mINP", fractions in [0, 1], and "median_rank".
        by_action, by_scene: see `figures_by_label`.
        pair_confusion: by stage and group, see there; a stage without any pair has no group.
        first_answers: by stage "coverage" and "collision_rate", which need no labels.
        group_rows: the rows of each group's queries.
        final_stage: "fused", "matching" or "embeddings", the last stage, which "sca" resolves; or the last of
            the score files.
        k: the cutoffs.
        rankings: stage to (Q, K) indices into the benchmark's gallery, best first.
        scores: stage to (Q, K), their scores; SCA leaves each image its own.
        relevant_ranks: stage to the ranks in the whole gallery of each query's relevant images, in the
            order of the benchmark's `relevant`; infinite where a score file does not rank one.
        moved: (Q,) bool, whether SCA changed the final stage's first answer, or a re-ranker a file's.
        sca, sca_report: its settings, and its counts on the final stage; None of score files.
    """

    stages: dict[str, dict[str, dict[str, float]]]
    by_action: dict[str, dict]
    by_scene: dict[str, dict]
    pair_confusion: dict[str, dict[str, dict[str, float]]]
    first_answers: dict[str, dict[str, float]]
    group_rows: dict[str, list[int]]
    final_stage: str
    k: list[int]
    shortlist: int
    fusion_weight: float
    sca: SCASettings | None
    rankings: dict[str, Tensor]
    scores: dict[str, Tensor]
    relevant_ranks: dict[str, list[np.ndarray]]
    moved: Tensor
    sca_report: SCAReport | None

    @property
    def group_sizes(self) -> dict[str, int]:
        """Queries in each group."""
        return {group: len(rows) for group, rows in self.group_rows.items()}

    def query_figures(self, stage: str) -> list[dict[str, float]]:
        """The figures of each query alone; see `figures_of_ranks`."""
        return query_figures(self.relevant_ranks[stage], self.k)


def evaluate(
    model: RetrievalModel,
    processor: RetrievalProcessor,
    benchmark: RetrievalBenchmark,
    root: Path,
    *,
    shortlist: int | None = None,
    matcher: ImageMatcher | None = None,
    matcher_shortlist: int = DEFAULT_MATCHER_SHORTLIST,
    fusion_weight: float = 0.0,
    sca: SCASettings | None = None,
    batch_size: int = 64,
    token_memory: int = TOKEN_MEMORY,
    k: Sequence[int] | None = None,
    annotated_at: Mapping[str, str] | None = None,
    elsewhere: Mapping[str, Path] | None = None,
    follow_links: bool = True,
    accelerator: Accelerator | None = None,
) -> EvaluationResult:
    """Ranks the gallery for every query of the benchmark and measures each stage.

    The model is put into evaluation mode and left in it. With an `accelerator` of several processes each
    takes a share of the work, and all return the same result. It depends neither on their number, nor on the
    batch size, nor on the memory, to the bit; see `tpas.evaluation.ranking`.

    Args:
        shortlist: images that are re-ranked for each query (`None`: 128), or the whole gallery where that
            is smaller.
        sca: `None`: the paper's settings.
        matcher, matcher_shortlist: see `rank_gallery`.
        batch_size, token_memory: see `rank_gallery`.
        k: cutoffs of Recall@k; `None`: those of 1, 5 and 10 that the gallery allows.
        annotated_at, elsewhere, follow_links: see `ImageFiles`.

    Raises:
        ValueError: for a k above the gallery's size, a shortlist, fusion weight or SCA setting out of range,
            and an unreadable image.
        FileNotFoundError: for a missing image.
    """
    gallery_ids = benchmark.gallery_ids
    shortlist = resolve_shortlist(shortlist, len(gallery_ids))
    cutoffs = resolve_k(k, len(gallery_ids))
    check_fusion_weight(fusion_weight)
    sca = sca or SCASettings()
    said = _warn_of_shared_answers(benchmark, sca.capacity)
    with warnings.catch_warnings():
        if said:
            warnings.filterwarnings("ignore", r"\d+ queries share ", UserWarning)
        ranked = rank_gallery(
            model,
            processor,
            benchmark.captions,
            benchmark.query_ids,
            ImageFiles(root, gallery_ids, annotated_at, elsewhere, follow_links),
            gallery_ids,
            shortlist=shortlist,
            matcher=matcher,
            matcher_shortlist=matcher_shortlist,
            fusion_weight=fusion_weight,
            sca=sca,
            watched=watched_images(benchmark),
            batch_size=batch_size,
            token_memory=token_memory,
            accelerator=accelerator,
        )

    return measured(
        benchmark,
        cutoffs,
        ranked.watched_ranks,
        rankings=ranked.indices,
        scores=ranked.scores,
        final_stage=ranked.final_stage,
        shortlist=shortlist,
        fusion_weight=fusion_weight,
        sca=sca,
        moved=ranked.moved,
        sca_report=ranked.sca_report,
    )


def measured(
    benchmark: RetrievalBenchmark,
    cutoffs: list[int],
    ranks: Mapping[str, Sequence[np.ndarray]],
    *,
    rankings: dict[str, Tensor],
    **rest: Any,
) -> EvaluationResult:
    """The figures of rankings.

    Args:
        ranks: by stage and query those of its relevant images, then of its hard negatives.
        rest: the other fields of the result.
    """
    groups = query_groups(benchmark)
    relevant_ranks, confusion = {}, {}
    for stage, of_stage in ranks.items():
        counts = [len(relevant) for relevant in benchmark.relevant]
        relevant_ranks[stage] = [row[:count] for row, count in zip(of_stage, counts, strict=True)]
        hard_negative_ranks = [row[count:] for row, count in zip(of_stage, counts, strict=True)]
        confusion[stage] = pair_confusion(relevant_ranks[stage], hard_negative_ranks, groups)
    figures = {stage: query_figures(of_stage, cutoffs) for stage, of_stage in relevant_ranks.items()}
    return EvaluationResult(
        stages={stage: group_figures(queries, groups) for stage, queries in figures.items()},
        by_action=figures_by_label(figures, benchmark.query_actions),
        by_scene=figures_by_label(figures, benchmark.query_scenes),
        pair_confusion=confusion,
        first_answers={stage: first_answers(indices) for stage, indices in rankings.items()},
        group_rows=groups,
        k=cutoffs,
        rankings=rankings,
        relevant_ranks=relevant_ranks,
        **rest,
    )


def watched_images(benchmark: RetrievalBenchmark) -> list[list[int]]:
    """Of each query its relevant images, then its hard negatives, as places in the gallery."""
    column = {gallery_id: index for index, gallery_id in enumerate(benchmark.gallery_ids)}
    hard_negatives = benchmark.hard_negatives or [[]] * len(benchmark.captions)
    return [
        [column[gallery_id] for gallery_id in (*relevant, *others)]
        for relevant, others in zip(benchmark.relevant, hard_negatives, strict=True)
    ]


def _warn_of_shared_answers(benchmark: RetrievalBenchmark, capacity: int) -> bool:
    """Whether there was need; SCA itself sees only few images, and not which answers how many queries."""
    answered = Counter(gallery_id for relevant in benchmark.relevant for gallery_id in relevant)
    most = max(answered.values())
    if most > capacity:
        logger.warning(
            "an image is relevant to up to %d queries, but SCA lets it answer %d: SCA may lower recall; a "
            "greater capacity (--sca_capacity) lets it answer more",
            most,
            capacity,
        )
    return most > capacity


def resolve_k(k: Sequence[int] | None, gallery_size: int) -> list[int]:
    """The cutoffs asked for, or for `None` those of 1, 5 and 10 that the gallery allows.

    Raises:
        ValueError: for a cutoff below 1 or above the gallery's size.
    """
    if k is None:
        allowed = [cutoff for cutoff in CUTOFFS if cutoff <= gallery_size]
        if len(allowed) < len(CUTOFFS):
            logger.info("the gallery has %d images: Recall@k for k in %s", gallery_size, allowed)
        return allowed
    for cutoff in k:
        if not 1 <= cutoff <= gallery_size:
            raise ValueError(f"k must be between 1 and the gallery's {gallery_size} images, got {cutoff}")
    return sorted(set(k))
