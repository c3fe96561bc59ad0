"""What a retrieval model is, whoever made it: the calls that evaluation and fine-tuning are written against.

`TPASModel` with its `TPASProcessor` is one such pair as it is; the other files of this folder bring others
into the same form. Stage 2 is optional: a model without `match` ranks by its embeddings alone, unless a
`ImageMatcher` is given beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling


class RetrievalModel(Protocol):
    """Encodes images and captions to unit-norm embeddings of one width.

    Attributes:
        temperature: a module whose call gives the temperature of the contrastive loss.
        name_or_path: what `load_retrieval_model` made it of.
    """

    temperature: torch.nn.Module
    name_or_path: str
    device: torch.device
    dtype: torch.dtype
    config: Any

    def get_image_features(self, pixel_values: Tensor, *more: Tensor) -> BaseModelOutputWithPooling:
        """The processor's image inputs in its order: `pooler_output` (B, D), unit norm.

        `last_hidden_state` (B, N, width) is what `match` reads of an image, None without `match`.
        """

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutputWithPooling:
        """Captions (B, L): `pooler_output` (B, D), unit norm; `last_hidden_state` (B, L, width) or None."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what `load_retrieval_model` reads, in the format of the model's own library."""


class MatchingModel(RetrievalModel, Protocol):
    """A retrieval model with a stage 2 of its own."""

    def match(
        self, image_hidden_states: Tensor, text_hidden_states: Tensor, text_attention_mask: Tensor
    ) -> Tensor:
        """Logits (B, 2) of B pairs, class 1 = the pair matches."""


class RetrievalProcessor(Protocol):
    """Images and captions to a model's inputs.

    Attributes:
        image_size: pixels a side of what the model sees.
        max_text_length: tokens at which a caption is cut.
    """

    image_size: int
    max_text_length: int

    def __call__(
        self, images: list[Image.Image] | None = None, text: list[str] | None = None
    ) -> BatchFeature:
        """`pixel_values` and whatever else the images need; `input_ids` and `attention_mask` (T, L)."""

    def save_pretrained(self, folder: str | Path) -> None: ...


class ImageMatcher(Protocol):
    """A stage 2 that reads images and captions themselves, and not what a first stage made of them.

    Attributes:
        pairs_in_a_pass: how many it is given at once. Fixed, because another number rounds otherwise.
    """

    pairs_in_a_pass: int

    def match_images(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Tensor:
        """Scores (B,) of B pairs, fp32 on the CPU; higher is a better match."""


def refuse_empty(captions: Sequence[str]) -> None:
    """Raises ValueError for an empty caption, naming its position."""
    for position, caption in enumerate(captions):
        if not caption.strip():
            raise ValueError(f"caption {position} is empty")


def can_match(model: RetrievalModel) -> bool:
    """Whether the model has a stage 2."""
    return hasattr(model, "match")
