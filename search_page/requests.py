"""What people ask on the search page, within its limits; each has a `Session`, and no one sees another's."""

import io
import logging
import math
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from ..models.interface import can_match
from ..models.unread_texts import as_read, unread_warnings
from ..processing_tpas import load_image
from ..search.explanation import Explanation
from ..search.gallery import Gallery
from ..search.hits import EncodedImage, SearchHit, SearchResult
from ..search.manifest import GalleryError
from ..search.ranking import DEFAULT_SHORTLIST
from ..search.shards import jpeg_thumbnail
from .labels import BEHAVIOURS, ImageLabel, labels_of

logger = logging.getLogger(__name__)

CARD_EDGE = 256  # pixels of an image among others
LARGE_EDGE = 768  # of one alone
KEPT_CARDS = 2_000  # copies of the gallery's images kept in memory, some 15 KB each
KEPT_IMAGES = 1_000  # of all sessions together, some 0.6 MB each; those added longest ago make room

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
    upload_pixels: int = 25_000_000
    requests_a_minute: int = 30


@dataclass(eq=False)
class Session:
    """What belongs to one person: their images, and the last result, which later questions point into.

    Attributes:
        opened: which opening of the gallery the result is of.
    """

    own_images: list[EncodedImage] = field(default_factory=list)
    result: SearchResult | None = None
    opened: int = 0


class SearchRequests:
    """A gallery and its model, for many sessions. One question at a time: the page's queue sees to that.

    Each is answered from the gallery as it is on the disk by then: what was deleted is not found any more.

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
        if gallery.model is None or gallery.processor is None:
            raise ValueError("open the gallery with its model and processor to search it")
        self.gallery, self.processor = gallery, gallery.processor
        self.can_rerank = can_match(gallery.model)
        self.limits = limits or Limits()
        self.shortlist = shortlist
        self._given_labels = labels or {}
        self.labels = labels_of(gallery.ids, self._given_labels)  # by row
        self._card_of_row = lru_cache(maxsize=KEPT_CARDS)(self._read_card)
        self._opened = 0
        self._model = threading.Lock()  # an upload is encoded while others ask
        self._holders: list[weakref.ref[Session]] = []  # of own images, who added last at the end

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

    def label(self, hit: SearchHit) -> ImageLabel | None:
        """What is known of a hit's image beside itself."""
        return None if hit.row is None else self.labels[hit.row]

    def search(
        self,
        session: Session,
        texts: Sequence[str],
        *,
        shown: int = 12,
        where: Where = "gallery",
        behaviour: str | None = None,
        scene: str | None = None,
        rerank: bool | None = None,
        sca: bool = True,
    ) -> SearchResult:
        """The best images for each text, which become the session's result.

        Args:
            shown: images in each answer, where there are as many.
            where: in the gallery, among the session's own images, or in both. Own images have no labels,
                so a filter leaves them out.
            rerank: as in `Gallery.search`.
            sca: of several texts, whether SCA resolves their collisions.

        Raises:
            RequestError: naming what is missing, too long or too many.
        """
        texts = self._checked_texts(texts)
        shown = self._checked_shown(shown)
        with self._current_gallery():
            session.result = self._searched(session, texts, shown, where, behaviour, scene, rerank, sca)
            session.opened = self._opened
        return session.result

    def _searched(
        self,
        session: Session,
        texts: list[str],
        shown: int,
        where: Where,
        behaviour: str | None,
        scene: str | None,
        rerank: bool | None,
        sca: bool,
    ) -> SearchResult:
        if where not in get_args(Where):
            raise RequestError("Search in the gallery, in your images, or in both.")
        filtered = behaviour is not None or scene is not None
        rows = [] if where == "own" else self._rows_with(behaviour, scene) if filtered else None
        extra = [] if where == "gallery" or filtered else session.own_images
        if rows is not None and not rows and not extra:
            if where == "own" and not filtered:
                raise RequestError("You have no images here yet: upload some, or search the gallery.")
            if where == "own":
                raise RequestError("Yours have no labels: leave out the filter, or search the gallery.")
            raise RequestError("No image is labelled so: choose another behaviour or scene.")
        return self.gallery.search(
            texts,
            top_k=shown,
            shortlist=self.shortlist,
            rerank=rerank,
            sca="score" if sca and len(texts) > 1 else None,
            rows=rows,
            extra=extra,
        )

    def unread(self, result: SearchResult) -> list[str]:
        """What of the texts the model does not know or cuts off, a line each; none where it reads all."""
        if result.similar_to is not None:
            return []
        one = len(result.texts) == 1
        places = ["your text" if one else f"text {number}" for number in range(1, len(result.texts) + 1)]
        return unread_warnings(self.processor, result.texts, places)

    def similar(self, session: Session, answer: int, place: int, shown: int = 12) -> SearchResult:
        """The neighbours, by the embeddings' cosine, of one image of the session's result.

        They are looked for in the gallery and among the session's own images, and become its result.

        Raises:
            RequestError: there is no such image any more.
        """
        shown = self._checked_shown(shown)
        with self._current_gallery():
            hit = self._asked(session, answer, place)
            session.result = self.gallery.similar(hit, shown, extra=session.own_images)
        return session.result

    def explain(self, session: Session, answer: int, place: int) -> tuple[str, SearchHit, Explanation | None]:
        """Why one image of the session's result was found: the text, the image, and the reasons.

        There are none for an image that was found by its likeness to another.

        Raises:
            RequestError: there is no such image any more, or its file is gone.
        """
        with self._current_gallery():
            hit = self._asked(session, answer, place)
            result = self._result(session)
            text = result.texts[answer]
            try:
                return text, hit, None if result.similar_to is not None else self.gallery.explain(hit, text)
            except GalleryError as error:
                logger.warning("%s", error)
                raise RequestError("The image's file cannot be read, so it cannot be explained.") from error

    def result(self, session: Session) -> SearchResult:
        """The session's result.

        Raises:
            RequestError: there is none any more, as where the gallery was changed since.
        """
        with self._current_gallery():
            return self._result(session)

    def add_images(self, session: Session, files: Sequence[Path]) -> dict[str, str]:
        """Encodes a person's images into their session; returns, by name, why some were refused."""
        refused = {}
        for file in files:
            room = self.limits.own_images - len(session.own_images)
            if room <= 0:
                refused[file.name] = f"more than {self.limits.own_images} images"
                continue
            try:
                image = self._load_upload(file)
            except (OSError, ValueError) as error:
                refused[file.name] = str(error).removeprefix(f"{file}: ")
                continue
            with self._model:
                encoded = self.gallery.encode_image(image, file.name, LARGE_EDGE)
            session.own_images.append(encoded)
        self._make_room(session)
        return refused

    def _load_upload(self, file: Path) -> Image.Image:
        if file.stat().st_size > self.limits.upload_megabytes * 2**20:
            raise ValueError(f"{file}: larger than {self.limits.upload_megabytes} MB")
        return load_image(file, self.limits.upload_pixels)

    def _make_room(self, session: Session) -> None:
        """Forgets the images of who added some longest ago, where there are more than `KEPT_IMAGES`."""
        holders = [other for other in (each() for each in self._holders) if other not in (None, session)]
        holders.append(session)
        self._holders = [weakref.ref(each) for each in holders if each]
        kept = sum(len(each.own_images) for each in holders if each)
        for each in holders[:-1]:
            if kept <= KEPT_IMAGES or each is None:
                return
            kept -= len(each.own_images)
            self.remove_images(each)

    def remove_images(self, session: Session) -> None:
        """Forgets a person's images and the result that shows them."""
        session.own_images.clear()
        session.result = None

    def card(self, hit: SearchHit) -> bytes | None:
        """A small copy of an image, as JPEG; None where it cannot be read."""
        if hit.extra is not None:
            return hit.extra.thumbnail
        return None if hit.row is None else self._card_of_row(hit.row)

    def large(self, hit: SearchHit) -> bytes | None:
        """A copy of an image to look at, as JPEG; the gallery's thumbnail where its file is gone."""
        if hit.extra is not None:
            return hit.extra.thumbnail
        if hit.row is None:
            return None
        image = self._file(hit.row)
        return self.gallery.stored.thumbnail(hit.row) if image is None else jpeg_thumbnail(image, LARGE_EDGE)

    def _read_card(self, row: int) -> bytes | None:
        thumbnail = self.gallery.stored.thumbnail(row)
        image = self._file(row) if thumbnail is None else load_image(io.BytesIO(thumbnail))
        return None if image is None else jpeg_thumbnail(image, CARD_EDGE)

    def _file(self, row: int) -> Image.Image | None:
        gallery = self.gallery
        if gallery.stored.record(row)["path"] is None:
            return None
        try:
            return gallery.stored.open_file(row, gallery.images_root, gallery.follow_links)
        except (OSError, ValueError) as error:
            logger.warning("an image of the gallery cannot be shown: %s", error)
            return None

    def _checked_texts(self, texts: Sequence[str]) -> list[str]:
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
            read = as_read(self.processor, text)
            if not any(char.isprintable() and not char.isspace() for char in read):
                raise RequestError(f"Text {number} has no words in it: {text[:40]!r}")
        return texts

    def _checked_shown(self, shown: int) -> int:
        is_number = isinstance(shown, int | float) and math.isfinite(shown)
        if not is_number or not 1 <= shown <= self.limits.images_shown:
            raise RequestError(f"Between 1 and {self.limits.images_shown} images can be shown.")
        return int(shown)

    def _rows_with(self, behaviour: str | None, scene: str | None) -> list[int]:
        return [
            row
            for row, label in enumerate(self.labels)
            if label is not None
            and (behaviour is None or label.behaviour == behaviour)
            and (scene is None or label.scene == scene)
        ]

    def _asked(self, session: Session, answer: int, place: int) -> SearchHit:
        """The hit of an answer by numbers from 0; they come from a browser, which may send anything."""
        for number in (answer, place):
            if not isinstance(number, int) or number < 0:
                raise RequestError("There is no such image in your result.")
        result = self._result(session)
        if answer >= len(result) or place >= len(result[answer]):
            raise RequestError("This result is gone: search again.")
        return result[answer][place]

    def _result(self, session: Session) -> SearchResult:
        if session.result is not None and session.opened != self._opened:
            session.result = None
            raise RequestError("The gallery was changed since: search again.")
        if session.result is None:
            raise RequestError("This result is gone: search again.")
        return session.result

    @contextmanager
    def _current_gallery(self) -> Iterator[None]:
        """Holds the model, and the gallery as it is on the disk now.

        Raises:
            RequestError: it cannot be searched as it is now; the log says why.
        """
        with self._model:
            try:
                if self.gallery.refresh():
                    self._opened += 1
                    self._card_of_row.cache_clear()
                    self.labels = labels_of(self.gallery.ids, self._given_labels)
                    logger.info("the gallery was changed: %d images now", len(self.gallery))
                yield
            except (FileNotFoundError, GalleryError) as error:
                logger.error("%s", error)
                raise RequestError(
                    "The gallery cannot be searched as it is now. The server's log says why."
                ) from error
