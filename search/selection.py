"""The images that one search looks through: a gallery's, or some of them, and images beside it."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .exact_index import ExactIndex
from .hits import EncodedImage
from .image_tokens import ImageTokens
from .indexes import Index
from .shards import id_hash


class Selection:
    """Rows of a gallery, then images beside it; a place is a number in this order.

    Args:
        tokens: the gallery's.
        rows: its rows, or None for all of them; without a copy of the embeddings then.
        extra: the images beside it.
        index: of these rows, where they need no copy.
    """

    def __init__(
        self,
        tokens: ImageTokens,
        rows: Tensor | None = None,
        extra: Sequence[EncodedImage] = (),
        index: Index | None = None,
    ):
        self.tokens = tokens
        self.rows = rows
        self.extra = extra
        self.of_gallery = len(tokens) if rows is None else len(rows)
        self.index = self._exact_index() if index is None else index

    def _exact_index(self) -> ExactIndex:
        stored = self.tokens.stored
        if self.rows is None:
            segments, hashes = list(stored.embeddings), stored.id_hashes
        else:
            segments = [stored.embedding_rows(self.rows)] if len(self.rows) else []
            hashes = stored.id_hashes[self.rows]
        if self.extra:
            segments.append(torch.stack([image.embedding for image in self.extra]))
            own = torch.tensor([id_hash(image.id) for image in self.extra], dtype=torch.long)
            hashes = torch.cat([hashes, own])
        return ExactIndex(segments, hashes)

    def __len__(self) -> int:
        return self.of_gallery + len(self.extra)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Image tokens (n, 1+N, image width) of places (n,): what a `Matcher` reads from."""
        own = places < self.of_gallery
        rows = places[own] if self.rows is None else self.rows.numpy()[places[own]]
        of_gallery = iter(self.tokens[rows] if len(rows) else ())
        of_extra = iter(self._tokens_beside(place) for place in places[~own])
        return np.stack([next(of_gallery if is_own else of_extra) for is_own in own])

    def _tokens_beside(self, place: int) -> np.ndarray:
        tokens = self.extra[place - self.of_gallery].tokens
        assert tokens is not None, "a model with a stage 2 keeps image tokens"
        return tokens

    @cached_property
    def most_views(self) -> int:
        """How many images the visit with the most of them has; 1 where none is of a film."""
        visits = self.visits()
        if visits is None or not self.of_gallery:
            return 1
        return max(1, int(visits[: self.of_gallery].bincount().max()))

    def visits(self) -> Tensor | None:
        """(places,) what the images of one visit in a film share; None where none is of a film."""
        of_gallery = self.tokens.stored.visits
        if of_gallery is None:
            return None
        own = of_gallery if self.rows is None else of_gallery[self.rows]
        return torch.cat([own, -1 - torch.arange(len(self.extra))]) if self.extra else own

    def row_of(self, place: int) -> int | None:
        """The gallery's row at a place, None at that of an image beside it."""
        if place >= self.of_gallery:
            return None
        return place if self.rows is None else int(self.rows[place])

    def places_of(self, rows: Sequence[int], extra: Sequence[EncodedImage] = ()) -> Tensor:
        """The places of rows and of images beside the gallery, and of all views of their visits."""
        if not rows and not extra:
            return torch.empty(0, dtype=torch.long)
        of_gallery = torch.arange(self.of_gallery) if self.rows is None else self.rows
        beside = [any(image is other for other in extra) for image in self.extra]
        chosen = torch.cat(
            [
                torch.isin(of_gallery, torch.tensor(rows, dtype=torch.long)),
                torch.tensor(beside, dtype=torch.bool),
            ]
        )
        visits = self.visits()
        if visits is not None:
            chosen = torch.isin(visits, visits[chosen])
        return chosen.nonzero().flatten()

    def embeddings(self, places: Sequence[int]) -> Tensor:
        """(n, D) of places (n,)."""
        rows = [row for row in map(self.row_of, places) if row is not None]
        of_gallery = iter(
            self.tokens.stored.embedding_rows(torch.tensor(rows, dtype=torch.long)) if rows else ()
        )
        beside = map(self.extra_of, places)
        return torch.stack([next(of_gallery) if image is None else image.embedding for image in beside])

    def extra_of(self, place: int) -> EncodedImage | None:
        """The image beside the gallery at a place, None at that of a row."""
        return self.extra[place - self.of_gallery] if place >= self.of_gallery else None
