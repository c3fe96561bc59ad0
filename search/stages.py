"""What the two stages of a search say of its texts, and which answers are shown of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engine.matching_cascade import CascadeReport
from ..modeling_tpas import TPASModel
from ..models.interface import ImageMatcher, RetrievalModel, can_match
from ..sca import Confidence, SCAReport, sca_rerank
from .arguments import MatchingDtype
from .ranking import reorder, replace_head, visits_first

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Stages:
    """What the stages of a search say of Q texts.

    Attributes:
        candidates, cosines: (Q, K), places in the selection, best first, and their cosines.
        match_scores: (Q, n) of the first n of them, match logits or a matcher's scores, or None.
        fused: (Q, n) what orders these in their place, if anything does.
    """

    candidates: Tensor
    cosines: Tensor
    match_scores: Tensor | None = None
    cascade_report: CascadeReport | None = None
    fused: Tensor | None = None

    @property
    def scores(self) -> Tensor | None:
        """(Q, n) what the first n are ordered by; None where the cosines order all."""
        return self.match_scores if self.fused is None else self.fused

    def shortlists(self, length: int) -> "np.ndarray":
        """Of the best `length` by cosine, or all, cosine and match score if there is one: (Q, S, 1 or 2)."""
        both = [self.cosines] if self.match_scores is None else [self.cosines, self.match_scores]
        return torch.stack([scores[:, :length] for scores in both], dim=-1).numpy()

    @classmethod
    def joined(cls, parts: Sequence["Stages"]) -> "Stages":
        """Of several blocks of texts, one after the other."""
        scores = [part.match_scores for part in parts if part.match_scores is not None]
        fused = [part.fused for part in parts if part.fused is not None]
        reports = [part.cascade_report for part in parts if part.cascade_report is not None]
        return cls(
            torch.cat([part.candidates for part in parts]),
            torch.cat([part.cosines for part in parts]),
            torch.cat(scores) if scores else None,
            sum(reports[1:], start=reports[0]) if reports else None,
            torch.cat(fused) if fused else None,
        )


def check_stages(
    model: RetrievalModel, rerank: bool | None, cascade: bool, matcher: ImageMatcher | None = None
) -> bool:
    """Whether there is a stage 2.

    Args:
        rerank, cascade, matcher: as in `Gallery.search`.

    Raises:
        ValueError: one is asked for, and the model has none; or a cascade of another than a TPAS model.
    """
    if cascade and (matcher is not None or not isinstance(model, TPASModel)):
        raise ValueError(
            "a cascade is of a TPAS model's own stage 2, which "
            + ("the matcher replaces" if matcher is not None else f"{model.name_or_path} has not")
            + ": leave it out"
        )
    if rerank is None:
        return matcher is not None or can_match(model)
    if rerank and matcher is None and not can_match(model):
        raise ValueError(
            f"{model.name_or_path} has embeddings alone, nothing to re-rank by: leave out rerank, or give a "
            "matcher"
        )
    if matcher is not None and not rerank:
        raise ValueError("a matcher re-ranks, and rerank=False was asked for: leave one out")
    return rerank


def check_precision(model: RetrievalModel, matching_dtype: MatchingDtype) -> None:
    """Raises ValueError where the model does not match in this precision; see `matcher_for`."""
    if matching_dtype == "bfloat16" and not isinstance(model, TPASModel):
        raise ValueError(
            f"only TPAS models compute in bfloat16, and {model.name_or_path} is none: leave it out"
        )


def ordered(
    stages: Stages, head: int, sca: Confidence | None, visits: Tensor | None
) -> tuple[Tensor, Tensor | None, SCAReport | None]:
    """The candidates (Q, K), their `head` best by the last stage; the same before SCA, and what it did."""
    before, report = None, None
    scores = stages.cosines[:, :head] if stages.scores is None else stages.scores
    ranking, scores = reorder(stages.candidates[:, :head], scores)
    if sca:
        if visits is not None:  # SCA takes lists of one length: what others have more of stays behind them
            ranking, scores, head = visits_first(ranking, scores, visits)
        before = replace_head(stages.candidates, ranking)
        resolved = sca_rerank(ranking[:, :head], scores[:, :head], confidence=sca)
        ranking, report = replace_head(ranking, resolved.indices), resolved.report
    return replace_head(stages.candidates, ranking), before, report


def best_views(ranking: Tensor, visits: Tensor | None) -> Tensor:
    """Of a ranking (K,) of places the first of each visit; all of it where there are no films."""
    if visits is None:
        return ranking
    first: dict[int, int] = {}
    for place, visit in zip(ranking.tolist(), visits[ranking].tolist(), strict=True):
        first.setdefault(visit, place)
    return torch.tensor(list(first.values()), dtype=torch.long)


def taken_by(before: Tensor, after: Tensor) -> list[int | None]:
    """Of first images (Q,) before and after SCA: for each query that lost its own, the query that has it."""
    holders = {place: query for query, place in reversed(list(enumerate(after.tolist())))}
    firsts = zip(before.tolist(), after.tolist(), strict=True)
    return [None if first == now else holders.get(first) for first, now in firsts]
