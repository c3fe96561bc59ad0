"""The image tokens that re-ranking reads: from the gallery's disk, or computed again from the images."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..engine.encoding import encode_images
from ..engine.fastest import encoder_for
from ..models.interface import Encoder, RetrievalModel, RetrievalProcessor
from .manifest import GalleryError
from .stored_gallery import StoredGallery

LEAST_COSINE = 0.98  # of an image's embedding then and now; far below what other precision would change


class ImageTokens:
    """Indexed as an array (G, 1+N, image width) is: `tokens[row]`, `tokens[rows]`, `tokens[first:last]`.

    Only what is asked for is read, one shard mapped at a time, so visit rows in ascending order.
    """

    def __init__(self, stored: StoredGallery):
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray | Tensor) -> np.ndarray:
        """(1+N, image width) of one row, (n, 1+N, image width) of several."""
        if isinstance(rows, int):
            return self._read([rows])[0]
        numbers = range(*rows.indices(len(self))) if isinstance(rows, slice) else map(int, rows)
        return np.stack(self._read(list(numbers)))

    def _read(self, rows: list[int]) -> list[np.ndarray]:
        return [self.stored.tokens(row) for row in rows]


class RecomputedImageTokens(ImageTokens):
    """For a gallery without tokens: each image is read and encoded when it is asked for, and not kept.

    Args:
        images_root, follow_links: see `StoredGallery.open_file`.
    """

    def __init__(
        self,
        stored: StoredGallery,
        model: RetrievalModel,
        processor: RetrievalProcessor,
        images_root: str | None,
        follow_links: bool = True,
        batch_size: int = 16,
    ):
        super().__init__(stored)
        self.model = model
        self.processor = processor
        self.images_root = images_root
        self.follow_links = follow_links
        self.batch_size = batch_size

    @cached_property
    def encoder(self) -> Encoder:
        return encoder_for(self.model, in_bf16=self.stored.settings.bf16)

    def _read(self, rows: list[int]) -> list[np.ndarray]:
        tokens = []
        for start in range(0, len(rows), self.batch_size):
            tokens += self._encode(rows[start : start + self.batch_size])
        return tokens

    def _encode(self, rows: list[int]) -> list[np.ndarray]:
        inputs = self.processor(images=[self._load(row) for row in rows])
        embeds, tokens = encode_images(self.encoder, inputs)
        assert tokens is not None
        cosines = (embeds * self.stored.embedding_rows(torch.tensor(rows))).sum(dim=1)  # (n,)
        for row, cosine in zip(rows, cosines.tolist(), strict=True):
            if cosine < LEAST_COSINE:
                name = self.stored.record(row)["id"]
                raise GalleryError(
                    f"image {name!r} is not the one that the gallery {self.stored.directory} holds "
                    f"(cosine of their embeddings: {cosine:.3f}): delete it there, and append it again"
                )
        return list(tokens.numpy())

    def _load(self, row: int):
        try:
            return self.stored.open_file(row, self.images_root, self.follow_links)
        except (OSError, ValueError) as error:
            raise GalleryError(
                f"the gallery {self.stored.directory} holds no tokens, and to compute them image "
                f"{self.stored.record(row)['id']!r} cannot be read: {error}"
            ) from error
