"""What a search returns, and what pages, sheets, exports and figures draw."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from ..data.moments import Moment
from ..sca import SCAReport

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..engine.matching_cascade import CascadeReport

# Of an image, its moment, and the file that it is a copy of, None of a whole frame: the same, faces covered.
Cover = Callable[[Image.Image, Moment | None, Path | None], Image.Image]


@dataclass(frozen=True, eq=False)  # two of one content are still two
class EncodedImage:
    """An image that is searched beside a gallery's: in memory, and nowhere on its disk.

    Attributes:
        id: its name in answers.
        embedding: (D,) fp32, unit norm.
        tokens: (1+N, image width), what the cross-modal encoder reads; None of a model without one.
        thumbnail: a copy to show, as JPEG.
    """

    id: str
    embedding: "Tensor"
    tokens: "np.ndarray | None"
    thumbnail: bytes


@dataclass(frozen=True)
class PhraseScore:
    """What one phrase says of one image by itself, beside the whole text; it orders nothing.

    Attributes:
        phrase: as it was asked for.
        wanted: whether it must be there; otherwise it must not.
        cosine: of the embeddings of phrase and image.
        match_logit: of the cross-modal encoder, or a matcher's score; None where it did not read the text.
    """

    phrase: str
    wanted: bool
    cosine: float
    match_logit: float | None = None

    @property
    def score(self) -> float:
        """What is shown of it: the match logit, or the cosine where there is none."""
        return self.cosine if self.match_logit is None else self.match_logit


@dataclass(frozen=True)
class SearchHit:
    """An image that answers a query.

    Attributes:
        id: the image's name in the gallery.
        rank: its place in the answer, from 1.
        score: what the answer is ordered by, and what is shown of it: the match logit, or the cosine where
            the answer was not re-ranked; where feedback moved the query, the mean of both, each in deviations
            from its mean among the re-ranked. Higher is better; it is no probability, and to be compared
            within one answer alone. None of an image below the shortlist of an answer that was: the cosine
            ordered these, and is no number beside the others' logits. An image that SCA moved keeps its own.
        cosine: of the embeddings of text and image, the text's as feedback moved it; None where only a later
            stage's score is known.
        match_logit: of the cross-modal encoder, or the score of a matcher in its place; None where it did
            not read the pair.
        embedding_rank: its place by cosine alone, from 1; None as `cosine`.
        rank_before_sca: its place before SCA resolved collisions, from 1; None where SCA was not asked for.
        phrases: what each phrase of a search with `must` or `must_not` says of it, in their order.
        chance: from 0 to 1, that it is the one asked for; None without a calibration or below the shortlist.
        path: where its file was when the gallery was built; None for an image that was no file.
        row: its row in the gallery; None of an image that is not of a gallery.
        moment: where in a film the image was seen; None of what is of no film. An answer shows a visit once,
            by the view that answers best.
        extra: the image itself, where it was searched beside the gallery.
        cover: what covers faces in all that it shows, see `Gallery`; None: they are shown.
    """

    id: str
    rank: int
    score: float | None
    cosine: float | None = None
    match_logit: float | None = None
    embedding_rank: int | None = None
    rank_before_sca: int | None = None
    phrases: tuple[PhraseScore, ...] = ()
    chance: float | None = None
    path: Path | None = None
    row: int | None = field(default=None, compare=False)
    moment: Moment | None = None
    extra: EncodedImage | None = field(default=None, repr=False)
    cover: Cover | None = field(default=None, repr=False, compare=False)
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
        from ..processing_tpas import load_image  # loads transformers, which names and scores do without

        if self._open is not None:
            image = self._open()
        elif self.path is None:
            raise FileNotFoundError(f"image {self.id!r} is known by its name alone")
        else:
            image = load_image(self.path)
        if self.cover is None or self.extra is not None:
            return image
        return self.cover(image, self.moment, self.path)

    def scene(self) -> Image.Image | None:
        """The whole frame of the film, small, with the person's box drawn; None where none was kept."""
        moment = self.moment
        if moment is None or moment.frame is None or moment.size is None or self.path is None:
            return None
        file = self.path.with_name(Path(moment.frame).name)
        if not file.is_file():
            return None
        from ..processing_tpas import load_image

        image = load_image(file)
        if self.cover is not None:
            image = self.cover(image, moment, None)
        scale = image.width / moment.size[0]
        left, top, width, height = (scale * side for side in moment.box)
        box = left, top, left + width, top + height
        ImageDraw.Draw(image).rectangle(box, outline=(255, 196, 0), width=max(2, image.width // 200))
        return image

    @property
    def is_moved(self) -> bool:
        """Whether SCA changed its place, so that its score is not in order."""
        return self.rank_before_sca not in (None, self.rank)

    def is_same_image(self, other: "SearchHit") -> bool:
        """Whether both show one image, in whatever answer and at whatever place."""
        return (self.id, self.row, self.extra) == (other.id, other.row, other.extra)


class SearchResult(list[list[SearchHit]]):
    """The answers to some texts, in their order, each a list of hits, best first; and how they came about.

    Attributes:
        texts: what was asked, as it was read: each with the phrases that must be there.
        searched: images that were looked through.
        sca_report: SCA's counts; None where it was not asked for.
        cascade_report: what a cascade saved; None where there was none.
        taken_by: where SCA took a text's first image away, the number, from 0, of the text that has it now;
            otherwise None.
        similar_to: the hit that was asked about, in place of a text.
        chances: of each text, from 0 to 1, that the one asked for is there; None without a calibration.
        coverage: what the answers' sets hold, where it was asked for.
        by_matcher: a matcher read the pairs, in place of the model's own cross-modal encoder.
        moved: liked or disliked images, or phrases that must not be there, moved the query.
    """

    def __init__(
        self,
        answers: Iterable[list[SearchHit]],
        *,
        texts: list[str],
        searched: int,
        sca_report: SCAReport | None = None,
        taken_by: Sequence[int | None] = (),
        cascade_report: "CascadeReport | None" = None,
        similar_to: SearchHit | None = None,
        by_matcher: bool = False,
        chances: Sequence[float | None] = (),
        coverage: float | None = None,
        moved: bool = False,
    ):
        super().__init__(answers)
        self.texts = texts
        self.searched = searched
        self.sca_report = sca_report
        self.taken_by = list(taken_by) or [None] * len(self)
        self.cascade_report = cascade_report
        self.similar_to = similar_to
        self.by_matcher = by_matcher
        self.chances = list(chances) or [None] * len(self)
        self.coverage = coverage
        self.moved = moved

    def part(self, answers: slice, most: int | None = None) -> "SearchResult":
        """Some of the answers, and of each the best `most`; not of such as SCA has resolved together."""
        return SearchResult(
            (hits[:most] for hits in self[answers]),
            texts=self.texts[answers],
            searched=self.searched,
            sca_report=self.sca_report,
            taken_by=self.taken_by[answers],
            similar_to=self.similar_to,
            by_matcher=self.by_matcher,
            chances=self.chances[answers],
            coverage=self.coverage,
            moved=self.moved,
        )

    def no_one(self, answer: int, least_chance: float) -> str | None:
        """What is to be said before the hits where the one asked for is likely not there; otherwise None."""
        chance = self.chances[answer]
        if chance is None or chance >= least_chance:
            return None
        return f"no one like this (chance {percent(chance)})"

    @property
    def is_reranked(self) -> bool:
        """Whether its scores are match logits; otherwise they are cosines."""
        return any(hit.match_logit is not None for hits in self for hit in hits[:1])

    @property
    def meaning_of_scores(self) -> str:
        """A sentence for those who look at them."""
        number = "cosine of the embeddings"
        if self.is_reranked:
            number = "matcher's own" if self.by_matcher else "match logit of the cross-modal encoder"
            if self.moved:
                number += " and the cosine with the moved query together, each in deviations from its mean"
        return (
            f"Ordered by score, the {number}: higher is better. It is no probability, and is to be compared "
            "within one answer only."
        )


def percent(chance: float) -> str:
    """A chance for people: 8 %, and never 0 or 100 of what is not known for sure."""
    return "< 1 %" if chance < 0.01 else "> 99 %" if chance > 0.99 else f"{100 * chance:.0f} %"


def _upright(image: Image.Image, name: str) -> Image.Image:
    from ..processing_tpas import upright_rgb

    return upright_rgb(image, name)
