"""Matches the pairs of one pass of images, in passes of pairs whose content is fixed; for `ranking.py`."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..modeling_tpas import TPASModel
from ..models.interface import RetrievalModel
from .fast_matching import FastMatcher, ReadTexts, passes_of_pairs
from .passes import side_by_side
from .retrieval_stages import EncodedTexts

# Not the defaults of others, which may come to depend on the machine. PADDED keeps a GPU busy at full size.
FAST_PAIRS_IN_A_PASS = 24
PADDED_PAIRS_IN_A_PASS = 64
CAPTIONS_READ_IN_A_PASS = 32

MatchPairs = Callable[[Tensor, np.ndarray, np.ndarray], Tensor]
"""(image tokens (n, 1+N, width), images (P,) among the n, captions (P,)) to match logits (P,).

These are fp32 on the CPU. Their last digits depend on these pairs and their order, on nothing else.
"""


def pair_matching(model: RetrievalModel, texts: EncodedTexts, order: Sequence[int]) -> MatchPairs:
    """The quickest way to the model's match logits: a `FastMatcher` on a CPU in fp32, else `model.match`.

    Args:
        order: the captions' numbers in the order in which they are read, which the last digits depend on.
    """
    if isinstance(model, TPASModel) and model.device.type == "cpu" and model.dtype == torch.float32:
        try:
            return _fast(FastMatcher(model), texts, order)
        except TypeError:
            pass  # an adapter in training, which only the model itself computes
    return _padded(model, texts)


def _fast(matcher: FastMatcher, texts: EncodedTexts, order: Sequence[int]) -> MatchPairs:
    lengths = texts.attention_mask.sum(dim=1).tolist()
    texts_read = ReadTexts([torch.empty(0)] * len(lengths), lengths)
    for start in range(0, len(order), CAPTIONS_READ_IN_A_PASS):
        part = list(order[start : start + CAPTIONS_READ_IN_A_PASS])
        of_part = EncodedTexts(texts.embeds[part], texts.hidden_states[part], texts.attention_mask[part])
        rows = matcher.read_texts(of_part, CAPTIONS_READ_IN_A_PASS).rows
        for caption, own in zip(part, rows, strict=True):
            texts_read.rows[caption] = own

    def match(tokens: Tensor, images: np.ndarray, captions: np.ndarray) -> Tensor:
        def match_pass(pairs: np.ndarray) -> Tensor:
            shown, counts = np.unique(images[pairs], return_counts=True)
            return matcher.match(texts_read, captions[pairs].tolist(), tokens[shown], counts.tolist())[:, 1]

        scores = torch.empty(len(images))
        passes = passes_of_pairs(images, FAST_PAIRS_IN_A_PASS)
        for pairs, own in zip(passes, side_by_side(match_pass, passes), strict=True):
            scores[pairs] = own
        return scores

    return match


def _padded(model: RetrievalModel, texts: EncodedTexts) -> MatchPairs:
    lengths = texts.attention_mask.sum(dim=1)

    @torch.inference_mode()
    def match(tokens: Tensor, images: np.ndarray, captions: np.ndarray) -> Tensor:
        scores = torch.empty(len(images))
        for start in range(0, len(images), PADDED_PAIRS_IN_A_PASS):
            pairs = slice(start, start + PADDED_PAIRS_IN_A_PASS)
            caption = captions[pairs]
            length = int(lengths[caption].max())
            logits = model.match(
                tokens[images[pairs]].to(model.device, model.dtype),
                texts.hidden_states[caption, :length].to(model.device, model.dtype),
                texts.attention_mask[caption, :length].to(model.device),
            )
            scores[pairs] = logits[:, 1].float().cpu()
        return scores

    return match
