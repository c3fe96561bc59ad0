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

from ..data.image_files import load_inside
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
from .image_pool import ImagePool, PoolImage, PrivateImage
from .labels import BEHAVIOURS, ImageLabel, labels_of

logger = logging.getLogger(__name__)

CARD_EDGE = 256  # pixels of an image among others
LARGE_EDGE = 768  # of one alone
KEPT_CARDS = 2_000  # copies of the gallery's images kept in memory, some 15 KB each

Where = Literal["gallery", "own", "both"]


class RequestError(ValueError):
    """What was asked for cannot be done; the message is for the person who asked."""


@dataclass(frozen=True)
class Limits:
    """What one person may ask for at a time."""

    texts: int = 20
    text_characters: int = 1_000
    images_shown: int = 48
    own_images: int = 24
    upload_megabytes: int = 10
    requests_a_minute: int = 30


@dataclass(frozen=True)
class RankedImage:
    """An image in an answer.

    Attributes:
        rank: its place in the answer, from 1.
        embedding_rank: its place by cosine alone, from 1.
        cosine: of its embedding with that of the text, or of the image asked about.
        match_logit, match_probability: as in `SearchHit`; None where the pair was not read.
        rank_before_sca: its place before SCA, from 1; None without SCA.
    """

    image: PoolImage
    rank: int
    embedding_rank: int
    cosine: float
    match_logit: float | None = None
    match_probability: float | None = None
    rank_before_sca: int | None = None


@dataclass(frozen=True)
class Answer:
    """The images for one text, or those similar to one image, best first.

    Attributes:
        searched: how many images were looked through.
        taken_by: where SCA took this answer's first image away: the number, from 1, of the text that
            holds it now.
    """

    text: str
    images: list[RankedImage]
    searched: int
    taken_by: int | None = None
    similar_to: PoolImage | None = None


@dataclass
class Session:
    """What belongs to one person: their images, and the last result, which later questions point into."""

    own_images: list[PrivateImage] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    sca_report: SCAReport | None = None


class SearchRequests:
    """A gallery and its model, for many sessions. One request at a time: the page's queue sees to that.

    Args:
        gallery: opened with its model and processor.
        labels: by image, as `read_labels` returns them.
    """

    def __init__(
        self,
        gallery: Gallery,
        labels: Mapping[str, ImageLabel] | None = None,
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
        """The shortest captions of images of the gallery, as things to ask; none without captions."""
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
        sca: bool = True,
    ) -> list[Answer]:
        """The best images for each text, which become the session's answers.

        Args:
            shown: images in each answer, where there are as many.
            where: in the gallery, among the session's own images, or in both. Own images have no labels,
                so a filter leaves them out.
            sca: of several texts, whether SCA resolves their collisions.

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
        reranked, report = ranking, None
        if sca and len(texts) > 1:
            result = sca_rerank(ranking, scores)
            reranked, report = result.indices, result.report
        if head:
            reranked = replace_head(candidates, reranked)
            ranking = replace_head(candidates, ranking)
        before = ranking if report else None
        session.answers = [
            self._answer(text, pool, query, reranked[:, :shown], before, candidates, cosines, logits)
            for query, text in enumerate(texts)
        ]
        session.sca_report = report
        return session.answers

    def similar(self, session: Session, answer: int, place: int, shown: int = 12) -> Answer:
        """The neighbours, by the embeddings' cosine, of one image of the session's answers.

        They are looked for in the gallery and among the session's own images, and become its only answer.

        Raises:
            RequestError: there is no such image any more.
        """
        asked = self._asked(session, answer, place).image
        pool = self._pool(session, "both" if session.own_images else "gallery", None, None)
        if asked.private is not None:
            embedding = asked.private.embedding[None]
        else:
            embedding = self.gallery.stored.embedding_rows(torch.tensor([asked.row]))  # (1, D)
        count = min(self._check_shown(shown) + 1, len(pool))  # itself is among them
        places, cosines = pool.index.search(embedding, count)
        found = [
            (pool.image(place), cosine)
            for place, cosine in zip(places[0].tolist(), cosines[0].tolist(), strict=True)
        ]
        others = [
            (image, cosine)
            for image, cosine in found
            if (image.row, image.private) != (asked.row, asked.private)
        ]
        images = [
            RankedImage(image, rank, embedding_rank=rank, cosine=cosine)
            for rank, (image, cosine) in enumerate(others[:shown], start=1)
        ]
        session.answers = [Answer(f"Similar to {asked.id}", images, len(pool) - 1, similar_to=asked)]
        session.sca_report = None
        return session.answers[0]

    def explain(
        self, session: Session, answer: int, place: int
    ) -> tuple[str, RankedImage, Explanation | None]:
        """Why one image of the session's answers was found: the text, the image, and the reasons.

        There are none for an image that was found by its likeness to another.

        Raises:
            RequestError: there is no such image any more.
        """
        asked = self._asked(session, answer, place)
        found_by = session.answers[answer]
        if found_by.similar_to is not None:
            return found_by.text, asked, None
        image = asked.image
        tokens = image.private.tokens if image.private is not None else self.tokens[image.row]
        image_tokens = torch.from_numpy(tokens)[None]  # (1, 1+N, image width)
        return found_by.text, asked, explain_tokens(self.model, self.processor, image_tokens, found_by.text)

    def add_images(self, session: Session, files: Sequence[Path]) -> dict[str, str]:
        """Encodes a person's images into their session; returns, by name, why some were refused."""
        refused = {}
        for file in files:
            room = self.limits.own_images - len(session.own_images)
            if room <= 0:
                refused[file.name] = f"more than {self.limits.own_images} images"
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
            session.own_images.append(
                PrivateImage(file.name, jpeg_thumbnail(image, LARGE_EDGE), embeds[0], tokens[0].numpy())
            )
        return refused

    def remove_images(self, session: Session) -> None:
        """Forgets a person's images and the answers that show them."""
        session.own_images.clear()
        session.answers, session.sca_report = [], None

    def card(self, image: PoolImage) -> bytes | None:
        """A small copy of an image, as JPEG; None where it cannot be read."""
        if image.private is not None:
            return image.private.jpeg
        return self._card_of_row(image.row)

    def large(self, image: PoolImage) -> bytes | None:
        """A copy of an image to look at, as JPEG; the gallery's thumbnail where its file is gone."""
        if image.private is not None:
            return image.private.jpeg
        opened = self._file(image.row)
        return (
            self.gallery.stored.thumbnail(image.row) if opened is None else jpeg_thumbnail(opened, LARGE_EDGE)
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
            logger.warning("an image of the gallery cannot be shown: %s", error)
            return None

    def _check_texts(self, texts: Sequence[str]) -> list[str]:
        texts = [text.strip() for text in texts if text.strip()]
        limits = self.limits
        if not texts:
            raise RequestError("Write what you are looking for: one text a line.")
        if len(texts) > limits.texts:
            raise RequestError(f"{len(texts)} texts are too many at a time: {limits.texts} at most.")
        for number, text in enumerate(texts, start=1):
            if len(text) > limits.text_characters:
                raise RequestError(
                    f"Text {number} has {len(text)} characters: {limits.text_characters} at most."
                )
            read = clean_caption(text) if self.processor.clean_captions else text
            if not any(char.isprintable() and not char.isspace() for char in read):
                raise RequestError(f"Text {number} has no words in it: {text[:40]!r}")
        return texts

    def _check_shown(self, shown: int) -> int:
        if not 1 <= shown <= self.limits.images_shown:
            raise RequestError(f"Between 1 and {self.limits.images_shown} images can be shown.")
        return int(shown)

    def _pool(self, session: Session, where: Where, behaviour: str | None, scene: str | None) -> ImagePool:
        filtered = behaviour is not None or scene is not None
        rows = None
        if where == "own":
            rows = torch.empty(0, dtype=torch.long)
        elif filtered:
            rows = self._rows_with(behaviour, scene)
        own = [] if where == "gallery" or filtered else session.own_images
        if rows is None and not own:
            pool = self._gallery_pool
        else:
            pool = ImagePool(self.tokens, self.labels, rows, own)
        if not len(pool):
            if where == "own":
                raise RequestError("You have no images here yet: upload some, or search the gallery.")
            raise RequestError("No image is labelled so: choose another behaviour or scene.")
        return pool

    @cached_property
    def _gallery_pool(self) -> ImagePool:
        return ImagePool(self.tokens, self.labels, None)  # whose index is worth keeping

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
        pool: ImagePool,
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
        images = []
        for rank, place in enumerate(rankings[query].tolist(), start=1):
            candidate = rows.index(place)
            image = RankedImage(
                image=pool.image(place),
                rank=rank,
                embedding_rank=candidate + 1,
                cosine=cosines[query, candidate].item(),
                rank_before_sca=None if before is None else places_before.index(place) + 1,
            )
            if logits is not None and candidate < logits.shape[1]:
                pair = logits[query, candidate]  # (2,)
                image = replace(
                    image, match_logit=pair[1].item(), match_probability=pair.softmax(dim=0)[1].item()
                )
            images.append(image)
        taken_by = None
        if before is not None and rankings[query, 0] != before[query, 0]:
            holders = (rankings[:, 0] == before[query, 0]).nonzero()
            taken_by = int(holders[0]) + 1
        return Answer(text, images, len(pool), taken_by)

    def _asked(self, session: Session, answer: int, place: int) -> RankedImage:
        """The image of an answer by numbers from 0; they come from a browser, which may send anything."""
        for number in (answer, place):
            if not isinstance(number, int) or number < 0:
                raise RequestError("There is no such image in your result.")
        try:
            return session.answers[answer].images[place]
        except IndexError:
            raise RequestError("This result is gone: search again.") from None
