"""Answers what people ask on the search page; each person has a `Session`, and no one sees another's."""

import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ..data.image_sources import load_inside
from ..engine.fast_encoding import fastest_encoder
from ..engine.fast_matching import FastMatcher
from ..engine.retrieval_stages import DEFAULT_SHORTLIST, encode_texts, reorder, replace_head
from ..processing_tpas import clean_caption, load_image
from ..sca import SCAReport, sca_rerank
from ..search.building import encode_pixels
from ..search.explanation import Explanation, explain_tokens
from ..search.gallery import Gallery
from ..search.image_tokens import ImageTokens, RecomputedImageTokens
from ..search.shards import jpeg_thumbnail
from .labels import BEHAVIOURS, PictureLabel, labels_of
from .picture_pool import PicturePool, PoolPicture, PrivatePicture

logger = logging.getLogger(__name__)

CARD_EDGE = 256  # pixels of a picture among others
LARGE_EDGE = 768  # of one alone
KEPT_CARDS = 2_000  # copies of the gallery's pictures kept in memory, some 15 KB each

Where = Literal["gallery", "own", "both"]


class RequestError(ValueError):
    """What was asked for cannot be done; the message is for the person who asked."""


@dataclass(frozen=True)
class Limits:
    """What one person may ask for at a time."""

    texts: int = 20
    text_characters: int = 1_000
    pictures_shown: int = 48
    own_pictures: int = 24
    upload_megabytes: int = 10
    requests_a_minute: int = 30


@dataclass(frozen=True)
class RankedPicture:
    """A picture in an answer.

    Attributes:
        rank: its place in the answer, from 1.
        embedding_rank: its place by cosine alone, from 1.
        cosine: of its embedding with that of the sentence, or of the picture asked about.
        match_logit, match_probability: as in `SearchHit`; None where the pair was not read.
        rank_before_settling: its place before SCA, from 1; None without SCA.
    """

    picture: PoolPicture
    rank: int
    embedding_rank: int
    cosine: float
    match_logit: float | None = None
    match_probability: float | None = None
    rank_before_settling: int | None = None


@dataclass(frozen=True)
class Answer:
    """The pictures for one sentence, or those similar to one picture, best first.

    Attributes:
        searched: how many pictures were looked through.
        taken_by: where SCA took this answer's first picture away: the number, from 1, of the sentence that
            holds it now.
    """

    text: str
    pictures: list[RankedPicture]
    searched: int
    taken_by: int | None = None
    similar_to: PoolPicture | None = None


@dataclass
class Session:
    """What belongs to one person: their pictures, and the last result, which later questions point into."""

    own_pictures: list[PrivatePicture] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    settling: SCAReport | None = None


class SearchDesk:
    """A gallery and its model, for many sessions. One request at a time: the page's queue sees to that.

    Args:
        gallery: opened with its model and processor.
        labels: by picture, as `read_labels` returns them.
    """

    def __init__(
        self,
        gallery: Gallery,
        labels: Mapping[str, PictureLabel] | None = None,
        limits: Limits | None = None,
        shortlist: int = DEFAULT_SHORTLIST,
    ):
        self.gallery = gallery
        self.limits = limits or Limits()
        self.shortlist = shortlist
        self.model, self.processor = gallery.model.eval(), gallery.processor
        self.labels = labels_of(gallery.ids, labels or {})
        self.matcher = FastMatcher(self.model)
        self.encoder = fastest_encoder(self.model)
        stored = gallery.stored
        if stored.settings.tokens is not None:
            self.tokens = ImageTokens(stored)
        else:
            self.tokens = RecomputedImageTokens(stored, self.model, self.processor, gallery.images_root)
        self._card_of_row = lru_cache(maxsize=KEPT_CARDS)(self._read_card)

    @property
    def behaviours(self) -> list[str]:
        """Those that the labels know, so that one can filter by them."""
        known = {label.behaviour for label in self.labels if label}
        return [behaviour for behaviour in BEHAVIOURS if behaviour in known]

    @property
    def scenes(self) -> list[str]:
        """As `behaviours`, the commonest first."""
        counts = Counter(label.scene for label in self.labels if label and label.scene)
        return [scene for scene, _ in counts.most_common()]

    def example_texts(self, count: int) -> list[str]:
        """The shortest captions of pictures of the gallery, as things to ask; none without captions."""
        captions = {label.caption for label in self.labels if label and label.caption}
        return sorted(captions, key=lambda caption: (len(caption), caption))[:count]

    def search(
        self,
        session: Session,
        texts: Sequence[str],
        *,
        shown: int = 12,
        where: Where = "gallery",
        behaviour: str | None = None,
        scene: str | None = None,
        rerank: bool = True,
        settle: bool = True,
    ) -> list[Answer]:
        """The best pictures for each text, which become the session's answers.

        Args:
            shown: pictures in each answer, where there are as many.
            where: in the gallery, among the session's own pictures, or in both. Own pictures have no labels,
                so a filter leaves them out.
            settle: of several texts, whether SCA settles their collisions.

        Raises:
            RequestError: naming what is missing, too long or too many.
        """
        texts = self._check_texts(texts)
        shown = self._check_shown(shown)
        pool = self._pool(session, where, behaviour, scene)
        encoded = encode_texts(self.model, self.processor, texts)
        head = min(self.shortlist, len(pool)) if rerank else 0
        candidates, cosines = pool.index.search(encoded.embeds, min(max(shown, head), len(pool)))  # (Q, K)

        logits = None
        ranking, scores = candidates, cosines
        if head:
            logits = self.matcher.logits_of_shortlists(pool, encoded, candidates[:, :head])  # (Q, head, 2)
            ranking, scores = reorder(candidates[:, :head], logits[:, :, 1])
        settled, report = ranking, None
        if settle and len(texts) > 1:
            result = sca_rerank(ranking, scores)
            settled, report = result.indices, result.report
        if head:
            settled = replace_head(candidates, settled)
            ranking = replace_head(candidates, ranking)
        before = ranking if report else None
        session.answers = [
            self._answer(text, pool, query, settled[:, :shown], before, candidates, cosines, logits)
            for query, text in enumerate(texts)
        ]
        session.settling = report
        return session.answers

    def similar(self, session: Session, answer: int, place: int, shown: int = 12) -> Answer:
        """The neighbours, by the embeddings' cosine, of one picture of the session's answers.

        They are looked for in the gallery and among the session's own pictures, and become its only answer.

        Raises:
            RequestError: there is no such picture any more.
        """
        asked = self._asked(session, answer, place).picture
        pool = self._pool(session, "both" if session.own_pictures else "gallery", None, None)
        if asked.private is not None:
            embedding = asked.private.embedding[None]
        else:
            embedding = self.gallery.stored.embedding_rows(torch.tensor([asked.row]))  # (1, D)
        count = min(self._check_shown(shown) + 1, len(pool))  # itself is among them
        places, cosines = pool.index.search(embedding, count)
        found = [
            (pool.picture(place), cosine)
            for place, cosine in zip(places[0].tolist(), cosines[0].tolist(), strict=True)
        ]
        others = [
            (picture, cosine)
            for picture, cosine in found
            if (picture.row, picture.private) != (asked.row, asked.private)
        ]
        pictures = [
            RankedPicture(picture, rank, embedding_rank=rank, cosine=cosine)
            for rank, (picture, cosine) in enumerate(others[:shown], start=1)
        ]
        session.answers = [Answer(f"Similar to {asked.id}", pictures, len(pool) - 1, similar_to=asked)]
        session.settling = None
        return session.answers[0]

    def explain(
        self, session: Session, answer: int, place: int
    ) -> tuple[str, RankedPicture, Explanation | None]:
        """Why one picture of the session's answers was found: the sentence, the picture, and the reasons.

        There are none for a picture that was found by its likeness to another.

        Raises:
            RequestError: there is no such picture any more.
        """
        asked = self._asked(session, answer, place)
        found_by = session.answers[answer]
        if found_by.similar_to is not None:
            return found_by.text, asked, None
        picture = asked.picture
        tokens = picture.private.tokens if picture.private is not None else self.tokens[picture.row]
        image_tokens = torch.from_numpy(tokens)[None]  # (1, 1+N, image width)
        return found_by.text, asked, explain_tokens(self.model, self.processor, image_tokens, found_by.text)

    def add_pictures(self, session: Session, files: Sequence[Path]) -> dict[str, str]:
        """Encodes a person's pictures into their session; returns, by name, why some were refused."""
        refused = {}
        for file in files:
            room = self.limits.own_pictures - len(session.own_pictures)
            if room <= 0:
                refused[file.name] = f"more than {self.limits.own_pictures} pictures"
                continue
            try:
                if file.stat().st_size > self.limits.upload_megabytes * 2**20:
                    raise ValueError(f"{file}: larger than {self.limits.upload_megabytes} MB")
                image = load_image(file)
            except (OSError, ValueError) as error:
                refused[file.name] = str(error).removeprefix(f"{file}: ")
                continue
            pixel_values = self.processor(images=[image])["pixel_values"]
            with torch.inference_mode():
                embeds, tokens = encode_pixels(self.encoder, pixel_values, "float16")
            session.own_pictures.append(
                PrivatePicture(file.name, jpeg_thumbnail(image, LARGE_EDGE), embeds[0], tokens[0].numpy())
            )
        return refused

    def remove_pictures(self, session: Session) -> None:
        """Forgets a person's pictures and the answers that show them."""
        session.own_pictures.clear()
        session.answers, session.settling = [], None

    def card(self, picture: PoolPicture) -> bytes | None:
        """A small copy of a picture, as JPEG; None where it cannot be read."""
        if picture.private is not None:
            return picture.private.jpeg
        return self._card_of_row(picture.row)

    def large(self, picture: PoolPicture) -> bytes | None:
        """A copy of a picture to look at, as JPEG; the gallery's thumbnail where its file is gone."""
        if picture.private is not None:
            return picture.private.jpeg
        image = self._file(picture.row)
        return (
            self.gallery.stored.thumbnail(picture.row) if image is None else jpeg_thumbnail(image, LARGE_EDGE)
        )

    def _read_card(self, row: int) -> bytes | None:
        thumbnail = self.gallery.stored.thumbnail(row)
        image = self._file(row) if thumbnail is None else Image.open(io.BytesIO(thumbnail))
        return None if image is None else jpeg_thumbnail(image, CARD_EDGE)

    def _file(self, row: int) -> Image.Image | None:
        record = self.gallery.stored.record(row)
        if record["path"] is None:
            return None
        try:
            return load_inside(self.gallery.images_root or record["root"], record["path"])
        except (OSError, ValueError) as error:
            logger.warning("a picture of the gallery cannot be shown: %s", error)
            return None

    def _check_texts(self, texts: Sequence[str]) -> list[str]:
        texts = [text.strip() for text in texts if text.strip()]
        limits = self.limits
        if not texts:
            raise RequestError("Write what you are looking for: one sentence a line.")
        if len(texts) > limits.texts:
            raise RequestError(f"{len(texts)} sentences are too many at a time: {limits.texts} at most.")
        for number, text in enumerate(texts, start=1):
            if len(text) > limits.text_characters:
                raise RequestError(
                    f"Sentence {number} has {len(text)} characters: {limits.text_characters} at most."
                )
            read = clean_caption(text) if self.processor.clean_captions else text
            if not any(char.isprintable() and not char.isspace() for char in read):
                raise RequestError(f"Sentence {number} has no words in it: {text[:40]!r}")
        return texts

    def _check_shown(self, shown: int) -> int:
        if not 1 <= shown <= self.limits.pictures_shown:
            raise RequestError(f"Between 1 and {self.limits.pictures_shown} pictures can be shown.")
        return int(shown)

    def _pool(self, session: Session, where: Where, behaviour: str | None, scene: str | None) -> PicturePool:
        filtered = behaviour is not None or scene is not None
        rows = None
        if where == "own":
            rows = torch.empty(0, dtype=torch.long)
        elif filtered:
            rows = self._rows_with(behaviour, scene)
        own = [] if where == "gallery" or filtered else session.own_pictures
        if rows is None and not own:
            pool = self._gallery_pool
        else:
            pool = PicturePool(self.tokens, self.labels, rows, own)
        if not len(pool):
            if where == "own":
                raise RequestError("You have no pictures here yet: upload some, or search the gallery.")
            raise RequestError("No picture is labelled so: choose another behaviour or scene.")
        return pool

    @cached_property
    def _gallery_pool(self) -> PicturePool:
        return PicturePool(self.tokens, self.labels, None)  # whose index is worth keeping

    def _rows_with(self, behaviour: str | None, scene: str | None) -> Tensor:
        rows = [
            row
            for row, label in enumerate(self.labels)
            if label is not None
            and (behaviour is None or label.behaviour == behaviour)
            and (scene is None or label.scene == scene)
        ]
        return torch.tensor(rows, dtype=torch.long)

    def _answer(
        self,
        text: str,
        pool: PicturePool,
        query: int,
        rankings: Tensor,
        before: Tensor | None,
        candidates: Tensor,
        cosines: Tensor,
        logits: Tensor | None,
    ) -> Answer:
        """The answer of one query of rankings (Q, shown); `before` SCA and the candidates are (Q, K)."""
        rows = candidates[query].tolist()
        places_before = None if before is None else before[query].tolist()
        pictures = []
        for rank, place in enumerate(rankings[query].tolist(), start=1):
            candidate = rows.index(place)
            picture = RankedPicture(
                picture=pool.picture(place),
                rank=rank,
                embedding_rank=candidate + 1,
                cosine=cosines[query, candidate].item(),
                rank_before_settling=None if before is None else places_before.index(place) + 1,
            )
            if logits is not None and candidate < logits.shape[1]:
                pair = logits[query, candidate]  # (2,)
                picture = replace(
                    picture, match_logit=pair[1].item(), match_probability=pair.softmax(dim=0)[1].item()
                )
            pictures.append(picture)
        taken_by = None
        if before is not None and rankings[query, 0] != before[query, 0]:
            holders = (rankings[:, 0] == before[query, 0]).nonzero()
            taken_by = int(holders[0]) + 1
        return Answer(text, pictures, len(pool), taken_by)

    def _asked(self, session: Session, answer: int, place: int) -> RankedPicture:
        """The picture of an answer by numbers from 0; they come from a browser, which may send anything."""
        for number in (answer, place):
            if not isinstance(number, int) or number < 0:
                raise RequestError("There is no such picture in your result.")
        try:
            return session.answers[answer].pictures[place]
        except IndexError:
            raise RequestError("This result is gone: search again.") from None
