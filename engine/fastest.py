"""The one place that decides what encodes and matches: this engine's own code, or the model's."""

import torch

from ..modeling_tpas import TPASModel
from ..models.interface import Encoder, MatchingModel, RetrievalModel, TextEncoder
from .fast_encoding import FastEncoder, FastTextEncoder
from .fast_matching import FastMatcher
from .matching import Matcher, PlainMatcher


def encoder_for(
    model: RetrievalModel,
    *,
    images_per_batch: int | None = None,
    texts_per_batch: int | None = None,
    in_bf16: bool = False,
) -> Encoder:
    """What encodes with the model's values (to 1e-5): a `FastEncoder` where there is one, else the model.

    There is one of a `TPASModel` in fp32 on a CPU whose adapters, if it has any, are merged. It is a copy:
    later changes of the model do not reach it.

    Args:
        images_per_batch, texts_per_batch: what a `FastEncoder` computes at once; `None`: what suits
            the device.
        in_bf16: a `TPASModel` by a `FastEncoder` of weights and arithmetic in bfloat16, on any device.

    Raises:
        ValueError: the model is in training mode.
    """
    if isinstance(model, TPASModel) and (in_bf16 or _is_fast(model)):
        dtype = torch.bfloat16 if in_bf16 else torch.float32
        try:
            return FastEncoder(model, dtype, images_per_batch, texts_per_batch)
        except TypeError:
            pass  # an adapter that is not merged, which only the model itself computes
    return model


def text_encoder_for(model: RetrievalModel) -> TextEncoder:
    """As [`encoder_for`], for texts alone: without a copy of the image encoder's weights."""
    if isinstance(model, TPASModel) and _is_fast(model):
        try:
            return FastTextEncoder(model)
        except TypeError:
            pass
    return model


def _is_fast(model: TPASModel) -> bool:
    # On a GPU, and in other precisions, the model's own code was not found slower.
    return model.device.type == "cpu" and model.dtype == torch.float32


def matcher_for(
    model: MatchingModel, dtype: torch.dtype | None = None, *, rounds_scores: bool = False
) -> Matcher:
    """The quickest way to the model's match logits (to 1e-5 in fp32).

    A `FastMatcher` of a `TPASModel` whose adapters, if it has any, are merged, and a `PlainMatcher` of every
    other. A `FastMatcher` is a copy: later changes of the model do not reach it.

    Args:
        dtype: of weights and arithmetic; `None`: the model's. A `PlainMatcher` has no other than the model's.
        rounds_scores: of a `FastMatcher`.

    Raises:
        ValueError: the model is in training mode, or cannot match in this precision.
    """
    dtype = model.dtype if dtype is None else dtype
    if isinstance(model, TPASModel):
        try:
            return FastMatcher(model, dtype, rounds_scores=rounds_scores)
        except TypeError:
            pass  # an adapter that is not merged, which only the model itself computes
    if dtype != model.dtype:
        raise ValueError(
            f"{model.name_or_path} matches in its own precision alone, {model.dtype}, not in {dtype}"
        )
    return PlainMatcher(model)
