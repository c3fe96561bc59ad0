"""What a retrieval model is, whoever made it: the calls that search, evaluation and fine-tuning rely on.

`TPASModel` with its `TPASProcessor` is one such pair as it is; the other files of this folder bring other
models into the same form. Stage 2 is optional: a model without `match` ranks by its embeddings alone, unless
an `ImageMatcher` is given beside it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL import Image
    from transformers import BatchFeature

    from ..modeling_tpas import Temperature


class Features(Protocol):
    """What a model makes of B images or texts."""

    @property
    def pooler_output(self) -> Tensor:
        """The embeddings (B, D), unit norm."""
        ...

    @property
    def last_hidden_state(self) -> Tensor | None:
        """(B, N, width), what `match` reads; None of a model without `match`."""
        ...


class TextEncoder(Protocol):
    """Encodes texts to unit-norm embeddings."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Encodes B texts (B, L)."""
        ...


class Encoder(TextEncoder, Protocol):
    """Encodes images as well, to embeddings of the same width."""

    def get_image_features(self, *args: Any, **kwargs: Any) -> Features:
        """Encodes B images: `get_image_features(**processor(images=images))`.

        The tensors are given by their names, which differ from model to model: all have `pixel_values`,
        SigLIP 2 has `pixel_attention_mask` and `spatial_shapes` beside it.
        """
        ...


class RetrievalModel(Encoder, Protocol):
    """A module of torch that encodes, is saved and loaded again, and can be trained."""

    @property
    def name_or_path(self) -> str | None:
        """What `load_model` made it of."""
        ...

    @property
    def config(self) -> Any: ...

    @property
    def temperature(self) -> "Temperature":
        """Its call gives the temperature of the contrastive loss."""
        ...

    def save_pretrained(self, folder: str | Path, /) -> Any:
        """Writes what `load_model` reads, in the format of the model's own library."""
        ...

    def activation_checkpointing_enable(self, settings: dict[str, Any], /) -> Any:
        """Recomputes activations going backwards, to spare memory; ValueError for a model that cannot."""
        ...

    # What every module of torch has.
    training: bool

    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...


class MatchingModel(RetrievalModel, Protocol):
    """A retrieval model with a stage 2 of its own."""

    def match(
        self, image_hidden_states: Tensor, text_hidden_states: Tensor, text_attention_mask: Tensor
    ) -> Tensor:
        """Logits (B, 2) of B pairs, class 1 = the pair matches."""
        ...


class RetrievalProcessor(Protocol):
    """Images and texts to a model's inputs."""

    max_text_length: int
    """Tokens at which a text is cut."""

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Pixels a side of what the model sees, or (height, width)."""
        ...

    @image_size.setter
    def image_size(self, image_size: int | tuple[int, int]) -> None: ...

    def __call__(
        self, images: "list[Image.Image] | None" = None, text: list[str] | None = None
    ) -> "BatchFeature":
        """For images the keyword arguments of `get_image_features`, for texts those of `get_text_features`.

        Raises:
            ValueError: for an empty text, see `check_captions`.
        """
        ...

    def save_pretrained(self, folder: str | Path, /) -> Any: ...


class ImageMatcher(Protocol):
    """A stage 2 that reads images and texts themselves, and not what a first stage made of them."""

    @property
    def pairs_per_batch(self) -> int:
        """How many pairs it is given at once. Fixed, because another number rounds otherwise."""
        ...

    def match_images(self, images: "Sequence[Image.Image]", captions: Sequence[str]) -> Tensor:
        """Scores (B,) of B pairs, fp32 on the CPU; higher is a better match."""
        ...


def can_match(model: RetrievalModel) -> TypeGuard[MatchingModel]:
    """Whether the model has a stage 2."""
    return hasattr(model, "match")
