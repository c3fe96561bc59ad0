"""Re-ranks shortlists in two steps: bf16 reads every pair, fp32 those that can still be among the best.

bf16 is faster and wrong by some hundredths of a logit, so it cannot say which of two close
images is the better one, but it can say which are out of the question. How wrong it is, is learnt on the
way from the pairs that both have read. `benchmarks/cascade.py` measures what is saved, and whether the best
stay the same.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..modeling_tpas import TPASModel
from ..models.interface import MatchingModel
from .encoding import EncodedTexts
from .fast_matching import FastMatcher
from .fastest import matcher_for
from .matching import Matcher

LEAST_ERROR_BOUND = 0.01  # of a match logit: however well the two agreed so far
ERROR_FACTOR = 2.0  # from the largest error seen to the largest that is reckoned with


@dataclass(frozen=True)
class CascadeReport:
    """What a cascade did.

    Attributes:
        pairs: that bf16 read.
        pairs_in_fp32: that fp32 read as well.
        error_bound: the difference of their logits that was reckoned with.
    """

    pairs: int
    pairs_in_fp32: int
    error_bound: float

    @property
    def share_saved(self) -> float:
        """Of the pairs that fp32 would read without the cascade."""
        return 1 - self.pairs_in_fp32 / self.pairs if self.pairs else 0.0

    def __add__(self, later: "CascadeReport") -> "CascadeReport":
        """Of both, one after the other; the bound of an error only grows."""
        pairs, pairs_in_fp32 = self.pairs + later.pairs, self.pairs_in_fp32 + later.pairs_in_fp32
        return CascadeReport(pairs, pairs_in_fp32, later.error_bound)

    def __str__(self) -> str:
        return (
            f"of {self.pairs:,} pairs fp32 read {self.pairs_in_fp32:,}, {self.share_saved:.1%} were saved "
            f"(error bound of bf16: {self.error_bound:.3f})"
        )


class MatchingCascade:
    """A copy of a model's cross-modal encoder in bf16 and one in fp32.

    Later changes of the model do not reach it. A CPU without bf16 instructions gains nothing by it.

    Attributes:
        largest_error: the largest difference of a pair's two match logits so far, in all calls.

    Raises:
        ValueError: as [`matcher_for`].
    """

    def __init__(self, model: MatchingModel, exact: Matcher | None = None):
        """`exact`: the model's matcher in fp32, if there is one already."""
        self.screen = _for_few_rows(matcher_for(model, torch.bfloat16, rounds_scores=True), model)
        self.exact = _for_few_rows(exact or matcher_for(model), model)
        self.largest_error = 0.0

    @property
    def error_bound(self) -> float:
        """The largest error of a bf16 logit that is reckoned with."""
        return max(LEAST_ERROR_BOUND, ERROR_FACTOR * self.largest_error)

    def logits_of_shortlists(
        self, image_hidden_states: Any, texts: EncodedTexts, shortlists: Tensor, top_k: int
    ) -> tuple[Tensor, CascadeReport]:
        """As [`Matcher.logits_of_shortlists`], exact for the best `top_k` of each query.

        Every image whose bf16 logit is within the error bound of the `top_k`-th fp32 logit is read in fp32,
        until none is left. So the best `top_k` have the logits of fp32, and are those that fp32 would choose,
        in its order, unless an error of bf16 exceeds the bound; all others have their bf16 logits, or fp32's,
        and rank below.

        Returns:
            Logits (Q, K, 2), and what was saved.
        """
        queries, size = shortlists.shape
        top_k = min(top_k, size)
        batch_size = even_batch_size(self.screen, shortlists.numel())
        logits = self.screen.logits_of_shortlists(
            image_hidden_states, texts, shortlists, batch_size=batch_size
        )  # (Q, K, 2)
        if not logits.numel():
            return logits, CascadeReport(0, 0, self.error_bound)
        screened = logits[:, :, 1].clone()
        is_exact = torch.zeros(queries, size, dtype=torch.bool)
        wanted = torch.zeros_like(is_exact).scatter(1, screened.topk(top_k).indices, True)
        texts_read = self.exact.read_texts(texts)
        while wanted.any():
            query, place = wanted.nonzero(as_tuple=True)  # (P,) each
            images = shortlists[query, place]
            logits[query, place] = self.exact.logits_of_pairs(
                image_hidden_states,
                texts_read,
                query.numpy(),
                images.numpy(),
                batch_size=even_batch_size(self.exact, len(images)),
            )
            is_exact |= wanted
            errors = (logits[query, place, 1] - screened[query, place]).abs()
            self.largest_error = max(self.largest_error, errors.max().item())
            known = logits[:, :, 1].masked_fill(~is_exact, -np.inf)
            least = known.topk(top_k).values[:, -1:]  # (Q, 1) what another image would have to beat
            wanted = ~is_exact & (screened + self.error_bound >= least)
        return logits, CascadeReport(is_exact.numel(), int(is_exact.sum()), self.error_bound)


def _for_few_rows(matcher: Matcher, model: MatchingModel) -> Matcher:
    if isinstance(matcher, FastMatcher) and isinstance(model, TPASModel):
        return matcher.for_few_rows(model)
    return matcher


def even_batch_size(matcher: Matcher, pairs: int, threads: int | None = None) -> int:
    """With which each thread of a CPU has as many of a few pairs as any other."""
    if threads is None:
        threads = torch.get_num_threads() if matcher.device.type == "cpu" else 1
    rounds = ceil(pairs / threads / matcher.pairs_per_batch)
    return ceil(pairs / threads / max(rounds, 1)) or 1
