"""What a search returns, and what pages, sheets, exports and figures draw."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class SearchHit:
    """An image that answers a query.

    Attributes:
        id: the image's name in the gallery.
        rank: its place in the answer, from 1.
        score: what the answer is ordered by: the match logit where there is one, otherwise the cosine. With
            SCA an image keeps its score, so the first one's may be lower than the second one's.
        cosine: of the embeddings of text and image; None where only a later stage's score is known.
        match_logit: of the cross-modal encoder; None where it did not read the pair.
        match_probability: that the pair matches, the softmax over both of its logits; not what the answer is
            ordered by. None as above.
        embedding_rank: its place by cosine alone, from 1; None as `cosine`.
        rank_before_sca: its place before SCA resolved collisions, from 1; None where SCA was not asked for.
        path: where its file was when the gallery was built; None for an image that was no file.
    """

    id: str
    rank: int
    score: float
    cosine: float | None = None
    match_logit: float | None = None
    match_probability: float | None = None
    embedding_rank: int | None = None
    rank_before_sca: int | None = None
    path: Path | None = None
    _open: Callable[[], Image.Image] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_image(cls, id: str, rank: int, score: float, image: Image.Image | str | Path) -> "SearchHit":
        """What any other system ranked: an image in memory, or its file."""
        if isinstance(image, Image.Image):
            return cls(id, rank, score, _open=lambda: _upright(image, id))
        return cls(id, rank, score, path=Path(image))

    def image(self) -> Image.Image:
        """The image's thumbnail, or without one the file itself, upright RGB, for the caller alone.

        Raises:
            FileNotFoundError, ValueError: there is neither, or it cannot be read.
            GalleryError: the thumbnail is damaged, or was deleted since the gallery was opened.
        """
        if self._open is not None:
            return self._open()
        if self.path is None:
            raise FileNotFoundError(f"image {self.id!r} is known by its name alone")
        from ..processing_tpas import load_image  # loads transformers, which names and scores do without

        return load_image(self.path)


def _upright(image: Image.Image, name: str) -> Image.Image:
    from ..processing_tpas import upright_rgb

    return upright_rgb(image, name)
