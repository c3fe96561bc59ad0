"""The pictures that one search looks through: those of the gallery that pass a filter, and a person's own."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..search.exact_index import ExactIndex
from ..search.image_tokens import ImageTokens
from ..search.shards import id_hash
from .labels import PictureLabel


@dataclass(frozen=True, eq=False)  # two of one content are still two
class PrivatePicture:
    """A picture that a person brought along; it is in this process's memory and nowhere else.

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
class PoolPicture:
    """One picture of a pool: a row of the gallery, or a private picture."""

    id: str
    label: PictureLabel | None = None
    row: int | None = None
    private: PrivatePicture | None = field(default=None, repr=False)


class PicturePool:
    """A selection of the gallery's rows, then private pictures; a place is a number in this order.

    Args:
        rows: the gallery's rows, or None for all of them; without a copy of the embeddings then.
        labels: of all rows of the gallery.
    """

    def __init__(
        self,
        tokens: ImageTokens,
        labels: Sequence[PictureLabel | None],
        rows: Tensor | None,
        private: Sequence[PrivatePicture] = (),
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
            segments.append(torch.stack([picture.embedding for picture in private]))
            own_hashes = torch.tensor([id_hash(picture.name) for picture in private], dtype=torch.long)
            hashes = torch.cat([hashes, own_hashes])
        self.index = ExactIndex(segments, hashes)

    def __len__(self) -> int:
        return self.shared + len(self.private)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Image tokens (n, 1+N, image width) of places (n,): a pool is what a `FastMatcher` reads from."""
        return np.stack([self._tokens(int(place)) for place in places])

    def picture(self, place: int) -> PoolPicture:
        if place >= self.shared:
            own = self.private[place - self.shared]
            return PoolPicture(own.name, private=own)
        row = self._row(place)
        return PoolPicture(self.gallery_tokens.stored.record(row)["id"], self.labels[row], row)

    def _row(self, place: int) -> int:
        return place if self.rows is None else int(self.rows[place])

    def _tokens(self, place: int) -> np.ndarray:
        if place >= self.shared:
            return self.private[place - self.shared].tokens
        return self.gallery_tokens[self._row(place)]
