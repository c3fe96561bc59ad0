"""The images that one search looks through: those of the gallery that pass a filter, and a person's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..search.exact_index import ExactIndex
from ..search.image_tokens import ImageTokens
from ..search.shards import id_hash
from .labels import ImageLabel


@dataclass(frozen=True, eq=False)  # two of one content are still two
class PrivateImage:
    """An image that a person brought along; it is in this process's memory and nowhere else.

    Attributes:
        name: the file's name.
        jpeg: a copy to show.
        embedding: (D,) fp32, unit norm.
        tokens: (1+N, image width) fp16.
    """

    name: str
    jpeg: bytes
    embedding: Tensor
    tokens: np.ndarray


@dataclass(frozen=True)
class PoolImage:
    """One image of a pool: a row of the gallery, or a private image."""

    id: str
    label: ImageLabel | None = None
    row: int | None = None
    private: PrivateImage | None = field(default=None, repr=False)


class ImagePool:
    """A selection of the gallery's rows, then private images; a place is a number in this order.

    Args:
        rows: the gallery's rows, or None for all of them; without a copy of the embeddings then.
        labels: of all rows of the gallery.
    """

    def __init__(
        self,
        tokens: ImageTokens,
        labels: Sequence[ImageLabel | None],
        rows: Tensor | None,
        private: Sequence[PrivateImage] = (),
    ):
        stored = tokens.stored
        self.gallery_tokens = tokens
        self.labels = labels
        self.rows = rows
        self.private = private
        self.shared = len(stored) if rows is None else len(rows)
        segments, hashes = list(stored.embeddings), stored.id_hashes
        if rows is not None:
            segments = [stored.embedding_rows(rows)] if len(rows) else []
            hashes = hashes[rows]
        if private:
            segments.append(torch.stack([image.embedding for image in private]))
            own_hashes = torch.tensor([id_hash(image.name) for image in private], dtype=torch.long)
            hashes = torch.cat([hashes, own_hashes])
        self.index = ExactIndex(segments, hashes)

    def __len__(self) -> int:
        return self.shared + len(self.private)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Image tokens (n, 1+N, image width) of places (n,): a pool is what a `FastMatcher` reads from."""
        return np.stack([self._tokens(int(place)) for place in places])

    def image(self, place: int) -> PoolImage:
        if place >= self.shared:
            own = self.private[place - self.shared]
            return PoolImage(own.name, private=own)
        row = self._row(place)
        return PoolImage(self.gallery_tokens.stored.record(row)["id"], self.labels[row], row)

    def _row(self, place: int) -> int:
        return place if self.rows is None else int(self.rows[place])

    def _tokens(self, place: int) -> np.ndarray:
        if place >= self.shared:
            return self.private[place - self.shared].tokens
        return self.gallery_tokens[self._row(place)]
