"""What people ask on the search page, within its limits; each has a `Session`, and no one sees another's."""

import io
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from ..data.moments import Moment
from ..footage.alarms import raised_in
from ..footage.clips import clip_name
from ..footage.faces import FaceCover
from ..models.interface import can_match
from ..models.loading import source_of
from ..models.unread_texts import as_read, unread_warnings
from ..processing_tpas import load_image
from ..search.explanation import Explanation
from ..search.feedback import NO_FEEDBACK, Feedback, name_of
from ..search.gallery import Gallery
from ..search.hits import EncodedImage, SearchHit, SearchResult
from ..search.manifest import GalleryError
from ..search.ranking import DEFAULT_SHORTLIST
from ..search.shards import jpeg_thumbnail
from ..search.stored_gallery import StoredGallery
from .filters import NO_FILTER, Facts, Filter, written
from .labels import ImageLabel, labels_of
from .questions import (
    Asked,
    ImageName,
    MissingError,
    Question,
    RequestError,
    UnavailableError,
    UnloggedError,
    Visitor,
)

logger = logging.getLogger(__name__)

CARD_EDGE = 256  # pixels of an image among others
VIEWED_EDGE = 1_600  # of one alone
OWN_EDGE = 768  # of what is kept of an upload
KEPT_CARDS = 2_000  # copies of the gallery's images kept in memory, some 15 KB each
KEPT_IMAGES = 1_000  # of all sessions together, some 0.6 MB each; those added longest ago make room

Where = Literal["gallery", "own", "both"]


# The first that the model finds in a gallery without captions are what one may ask it.
EXAMPLES = (
    "a man in a dark suit",
    "a woman in a red dress",
    "a person on a bicycle",
    "a child is running",
    "a person with a backpack",
    "somebody is lying on the ground",
    "a man in a red jacket",
    "a woman with an umbrella",
    "people are crossing a street",
    "two people are fighting",
)


@dataclass(frozen=True)
class Limits:
    """What one person may ask for at a time.

    Attributes:
        images_shown: on a page, of each text.
        images_found: on all pages.
        own_machine: nobody but who sits at this machine asks: as often as they like, and are told where the
            images' files lie.
    """

    texts: int = 20
    text_characters: int = 1_000
    images_shown: int = 48
    images_found: int = 240
    own_images: int = 24
    marks: int = 24
    upload_megabytes: int = 10
    upload_pixels: int = 25_000_000
    requests_a_minute: int = 30
    own_machine: bool = False


@dataclass(eq=False)
class Session:
    """What belongs to one person: their images, and the last result, which later questions point into.

    Attributes:
        question: what the result answers.
        settings: under which it was asked, as the page compares them.
        opened: which opening of the gallery the result is of.
        page, shown: the page of the result that is in sight, from 0, and images on it for each text.
        visitor: who asks.
    """

    own_images: list[EncodedImage] = field(default_factory=list)
    result: SearchResult | None = None
    question: Question = Question()
    settings: tuple = ()
    opened: int = 0
    page: int = 0
    shown: int = 12
    visitor: Visitor = Visitor()


@dataclass(frozen=True)
class Answered:
    """What a program asked, answered.

    Attributes:
        unread: what of the texts the model does not know or cuts off, a line each.
    """

    result: SearchResult
    unread: list[str]


class SearchRequests:
    """A gallery and its model, for many sessions. One question at a time: the page's queue sees to that.

    Each is answered from the gallery as it is on the disk by then: what was deleted is not found any more.

    Args:
        gallery: opened with its model and processor.
        labels: by image, as `read_labels` returns them.
        name: what to call the gallery; `None`: as its folder.
        faces: what covers them in all that is shown of films; `None`: they are shown.
        audit: takes what is to be shown to somebody, before it is: lines as of `service.audit`; raises
            OSError where it does not, and nothing is shown.
        model: held while the model works; one for all galleries of a model.
        cascade: as in `Gallery.search`; the best of it are what a program asks for, and the first page.

    Raises:
        ValueError: the gallery was opened without its model, or a cascade is of no use in it.

    Attributes:
        opened: how often the gallery was opened again, because it had changed.
    """

    def __init__(
        self,
        gallery: Gallery,
        labels: Mapping[str, ImageLabel] | None = None,
        limits: Limits | None = None,
        shortlist: int = DEFAULT_SHORTLIST,
        name: str | None = None,
        faces: FaceCover | None = None,
        audit: Callable[[Sequence[Mapping[str, Any]]], None] | None = None,
        model: AbstractContextManager[Any] | None = None,
        cascade: bool = False,
    ):
        if cascade:
            gallery.check_cascade()
        if gallery.model is None or gallery.processor is None:
            raise ValueError("open the gallery with its model and processor to search it")
        self.gallery, self.processor = gallery, gallery.processor
        self.faces = gallery.cover = faces
        self.can_rerank = can_match(gallery.model)
        self.limits = limits or Limits()
        self.shortlist, self.cascade = shortlist, cascade
        self.name = name or gallery.path.resolve().name
        self._given_labels = labels or {}
        self._look_at_rows()
        self._card_of_row = lru_cache(maxsize=KEPT_CARDS)(self._read_card)
        self.opened = 0
        self.audit = audit
        self._model = model or threading.Lock()  # an upload is encoded while others ask
        self._holders: list[weakref.ref[Session]] = []  # of own images, who added last at the end

    def warm_up(self) -> None:
        """As `Gallery.warm_up`; what is wrong with the gallery is logged, and the first question says so."""
        with suppress(UnavailableError), self._current_gallery():
            self.gallery.warm_up(self.shortlist, self.cascade)

    def _look_at_rows(self) -> None:
        self._looked_at = self.gallery.stored
        self.labels = labels_of(self._looked_at.ids(), self._given_labels)  # by row
        self.facts = Facts(self._looked_at.columns, self.labels)
        self._examples: list[str] | None = None

    @property
    def model_name(self) -> str:
        """As on the Hub; of a folder without those above, which are the operator's own."""
        source = source_of(self.gallery.model) if self.gallery.model is not None else None
        name = source.name if source is not None else type(self.gallery.model).__name__
        return Path(name).name if Path(name).exists() else name

    def example_texts(self, count: int) -> list[str]:
        """Things to ask: the shortest captions of the gallery's images, or what the model finds in it."""
        captions = {label.caption for label in self.labels if label and label.caption}
        if captions:
            return sorted(captions, key=lambda caption: (len(caption), caption))[:count]
        with self._current_gallery():
            if self._examples is None:
                known = [text for text in EXAMPLES if not unread_warnings(self.processor, [text], [text])]
                best = self.gallery.search(known, top_k=len(EXAMPLES), rerank=False)
                # Not by the first cosine alone: some texts are near to every image.
                fit = [(hits[-1].score or 0) - (hits[0].score or 0) for hits in best if hits]
                self._examples = [text for _, text in sorted(zip(fit, known, strict=False))]
            return self._examples[:count]

    def sample(self, count: int) -> list[SearchHit]:
        """Images from all over the gallery, ranked by nothing."""
        with self._current_gallery():
            total = len(self.gallery)
            rows = sorted({place * total // count for place in range(count)}) if total else []
            names = [self.gallery.stored.record(row)["id"] for row in rows]
        return [SearchHit(name, 1, None, row=row) for name, row in zip(names, rows, strict=True)]

    def label(self, hit: SearchHit) -> ImageLabel | None:
        """What is known of a hit's image beside itself."""
        return None if hit.row is None else self.labels[hit.row]

    def moment(self, image: str) -> Moment:
        """Where a film shows an image of the gallery, as that is on the disk now.

        It does not wait for the model, unless the gallery was changed.

        Raises:
            RequestError: there is no such image any more, or it is of no film.
        """
        self.refresh()
        moment = self._image(Session(), image).moment
        if moment is None:
            raise MissingError("This image is of no film.")
        return moment

    def image_file(self, image: str, edge: int | None, visitor: Visitor) -> bytes:
        """An image of the gallery as JPEG, as that is on the disk now; it waits for no model either.

        Args:
            edge: of its longer side, in pixels; `None`: as the image has them.

        Raises:
            RequestError: there is no such image any more, or its file cannot be read.
        """
        self.refresh()
        stored = self.gallery.stored  # one for all that follows: another may take its place meanwhile
        try:
            (row,) = stored.rows_of([image])
            content = thumbnail = stored.thumbnail(row)
            if edge != CARD_EDGE or thumbnail is None or self.faces is not None:
                read = None if edge == CARD_EDGE and thumbnail else self._file(row, edge, stored)
                if read is None and thumbnail is not None:
                    read = load_image(io.BytesIO(thumbnail))
                content = None if read is None else self._shown(read, row, edge or max(read.size))
                if self.faces is not None and self.gallery.stored is not stored:
                    raise UnavailableError("The gallery was changed meanwhile: ask again.")
        except KeyError as error:
            raise MissingError("The gallery has no image of this name.") from error
        except GalleryError as error:
            logger.warning("%s", error)
            raise UnavailableError("The gallery was changed meanwhile: ask again.") from error
        if content is None:
            raise MissingError("The image's file cannot be read.")
        self.log(visitor, "image", image=image, edge=edge)
        return content

    def moments(
        self, wanted: Filter, first: int, count: int, visitor: Visitor
    ) -> tuple[int, list[tuple[str, Moment]]]:
        """How many visits in films pass a filter, and some of them: of each its first image's id.

        Args:
            first, count: which of them, from 0, in the gallery's order.

        Raises:
            RequestError: the gallery cannot be searched now, or a time is asked for that no film knows.
        """
        with self._current_gallery():
            visits = self.facts.visits_among(self._rows(wanted))
            chosen = visits[first : first + count].tolist()
            stored = self.gallery.stored
            found = [
                (stored.record(row)["id"], of) for row in chosen if (of := stored.moment(row)) is not None
            ]
        self.log(visitor, "moments", asked=_said(wanted), shown=[[image for image, _ in found]])
        return len(visits), found

    def alarms(self, first: int, count: int, visitor: Visitor) -> tuple[int, list[dict[str, Any]]]:
        """How many alarms `tpas watch` has raised here, and some of them, the newest first.

        Raises:
            RequestError: their file is damaged.
        """
        try:
            raised = raised_in(self.gallery.path)
        except (OSError, ValueError) as error:
            logger.warning("%s", error)
            raise UnavailableError("The file of alarms cannot be read. The server's log says why.") from error
        found = raised[first : first + count]
        self.log(visitor, "alarms", shown=[[line["id"] for line in found]])
        return len(raised), found

    def refresh(self) -> None:
        """Looks at the gallery as it is on the disk now; waits for the model only where it was changed.

        Raises:
            UnavailableError: it cannot be searched as it is now.
        """
        try:
            is_changed = self.gallery.stored.current_file_state() != self.gallery.stored.file_state
        except (OSError, GalleryError):
            is_changed = True  # which says so
        if is_changed:
            with self._current_gallery():
                pass

    def log(self, visitor: Visitor, event: str, **what: Any) -> None:
        """Puts into the audit log, if there is one, what is to be shown; as `_log`."""
        self._log([_line(visitor, event, **what)])

    def _log(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Raises UnloggedError where they are not in the audit log: then nothing may be shown."""
        if self.audit is None or not lines:
            return
        try:
            self.audit([{**line, "gallery": self.name} for line in lines])
        except OSError as error:
            logger.error("nothing is shown: %s", error)
            raise UnloggedError("The audit log cannot be written, so nothing is shown.") from error

    def answers(self, asked: Sequence[Asked]) -> list[Answered | RequestError]:
        """The answers to what several programs ask, each as it would be alone, or why there is none.

        Those of equal settings go through the model together. Where its arithmetic rounds by what else is in
        a pass, as on some machines, last digits of scores depend on that.
        """
        answers: dict[int, Answered | RequestError] = {}
        groups: dict[Any, list[int]] = {}
        try:
            with self._current_gallery():
                for number, each in enumerate(asked):
                    try:
                        self._checked_texts(each.texts)
                        self._checked_number(each.top_k, self.limits.images_found)
                        self._check_feedback(Session(), each.feedback, each.sca and len(each.texts) > 1)
                        groups.setdefault(each.settings, []).append(number)
                    except RequestError as error:
                        answers[number] = error
                for numbers in groups.values():
                    together = [asked[number] for number in numbers]
                    answers |= dict(zip(numbers, self._answers_of_equal(together), strict=True))
            both = [(each, answers[number]) for number, each in enumerate(asked)]
            self._log([_searched(each, of.result) for each, of in both if isinstance(of, Answered)])
        except RequestError as error:
            return [error for _ in asked]
        return [answer for _, answer in both]

    def _answers_of_equal(self, asked: Sequence[Asked]) -> list[Answered | RequestError]:
        """To questions of equal settings, in one pass."""
        first, texts = asked[0], [text for each in asked for text in each.texts]
        try:
            rows = self._rows(first.wanted)
            if rows is not None and not len(rows):
                raise RequestError("No image passes the filter: choose another one.")
            if first.rerank and not self.can_rerank:
                raise RequestError("The model has embeddings alone, and nothing to re-rank by.")
            if first.coverage is not None and self.gallery.calibration is None:
                raise RequestError("There is no calibration of the model, so no coverage is known.")
            found = self.gallery.search(
                texts,
                top_k=max(each.top_k for each in asked),
                shortlist=self.shortlist,
                rerank=first.rerank,
                sca="score" if first.sca and len(texts) > 1 else None,
                coverage=first.coverage,
                rows=rows,
                **self._cascade_of(first, max(each.top_k for each in asked)),
                **first.feedback.settings,
            )
        except RequestError as error:
            return [error for _ in asked]
        except ValueError as error:  # of a re-ranking or a coverage that the model has not
            return [RequestError(str(error)) for _ in asked]
        results, start = [], 0
        for each in asked:
            stop = start + len(each.texts)
            part = found.part(slice(start, stop), each.top_k if each.coverage is None else None)
            results.append(Answered(part, self.unread(part)))
            start = stop
        return results

    def search(
        self,
        session: Session,
        texts: Sequence[str],
        *,
        shown: int = 12,
        where: Where = "gallery",
        wanted: Filter = NO_FILTER,
        rerank: bool | None = None,
        sca: bool = False,
        feedback: Feedback = NO_FEEDBACK,
    ) -> SearchResult:
        """The best images for each text, which become the session's result.

        Args:
            shown: images in each answer, where there are as many.
            where: in the gallery, among the session's own images, or in both.
            wanted: of the gallery's images; own ones are searched all the same.
            rerank: as in `Gallery.search`.
            sca: of several texts, whether SCA resolves their collisions.
            feedback: images of the gallery by their ids, and phrases.

        Raises:
            RequestError: naming what is missing, too long or too many.
        """
        texts = self._checked_texts(texts)
        shown = self._checked_number(shown, self.limits.images_found)
        with self._current_gallery():
            result = self._searched(session, texts, shown, where, wanted, rerank, sca, feedback)
            asked = Asked(
                tuple(texts), shown, wanted, rerank, sca, feedback=feedback, visitor=session.visitor
            )
            self._log([_searched(asked, result)])
            session.result = result
            session.question = Question(tuple(texts), None, wanted, sca and len(texts) > 1, feedback)
            session.opened, session.page = self.opened, 0
        return session.result

    def search_in_stages(
        self,
        session: Session,
        texts: Sequence[str],
        *,
        shown: int,
        where: Where,
        wanted: Filter,
        rerank: bool,
        sca: bool,
        feedback: Feedback = NO_FEEDBACK,
    ) -> Iterator[frozenset[int]]:
        """As `search`, with a result at once by the embeddings, then as the texts are re-ranked.

        Yields:
            The numbers of the texts that are not re-ranked yet.
        """
        asked: dict[str, Any] = {"shown": shown, "where": where, "wanted": wanted, "feedback": feedback}
        texts = self._checked_texts(texts)
        if not (rerank and self.can_rerank):
            self.search(session, texts, rerank=False, sca=sca, **asked)
            yield frozenset()
            return
        waiting = frozenset(range(len(texts)))
        self.search(session, texts, rerank=False, **asked)
        session.question = Question(tuple(texts), None, wanted, sca and len(texts) > 1, feedback)
        yield waiting
        if len(texts) == 1 or sca or self.gallery.stored.settings.tokens is None:  # without, one reading less
            self.search(session, texts, sca=sca, **asked)
            yield frozenset()
            return
        for number, text in enumerate(texts):
            with self._current_gallery():
                result = self._result(session)
                own = self._searched(session, [text], shown, where, wanted, None, False, feedback)
                of_one = Asked((text,), shown, wanted, feedback=feedback, visitor=session.visitor)
                self._log([_searched(of_one, own)])
                result[number], result.chances[number] = own[0], own.chances[0]
            waiting -= {number}
            yield waiting

    def _searched(
        self,
        session: Session,
        texts: list[str],
        shown: int,
        where: Where,
        wanted: Filter,
        rerank: bool | None,
        sca: bool,
        feedback: Feedback,
    ) -> SearchResult:
        if where not in get_args(Where):
            raise RequestError("Search in the gallery, in your images, or in both.")
        rows = [] if where == "own" else self._rows(wanted)
        extra = [] if where == "gallery" else list(session.own_images)  # which another request may clear
        if rows is not None and not len(rows) and not extra:
            if where == "own":
                raise RequestError("You have no images here yet: upload some, or search the gallery.")
            raise RequestError("No image passes the filter: choose another one.")
        self._check_feedback(session, feedback, sca and len(texts) > 1)
        return self.gallery.search(
            texts,
            top_k=shown,
            shortlist=self.shortlist,
            rerank=rerank,
            sca="score" if sca and len(texts) > 1 else None,
            rows=rows,
            extra=extra,
            **self._cascade_of(Asked(tuple(texts), shown, wanted, rerank, feedback=feedback), session.shown),
            **feedback.settings,
        )

    def _cascade_of(self, asked: Asked, best: int) -> dict[str, Any]:
        """For `Gallery.search`: the best so many by the cascade, where it has one to save anything."""
        changes = asked.rerank is False or asked.feedback.moves or asked.coverage is not None
        if not self.cascade or changes or best >= self.shortlist:
            return {}
        return {"cascade": True, "exact_top": best}

    def _check_feedback(self, session: Session, feedback: Feedback, sca: bool) -> None:
        """Raises RequestError for what is too much or too long, and for an image that is not there."""
        marks = [*feedback.liked, *feedback.disliked]
        if len(marks) > self.limits.marks:
            raise RequestError(f"{len(marks)} marked images are too many: {self.limits.marks} at most.")
        for mark in marks:
            self._image(session, name_of(mark))
        for phrase in (*feedback.must, *feedback.must_not):
            if len(phrase) > self.limits.text_characters:
                raise RequestError(
                    f"A phrase has {len(phrase)} characters: {self.limits.text_characters} at most."
                )
        if sca and feedback.moves:
            raise RequestError(
                "Marks and what must not be seen are of one person: leave them out where each text looks for "
                "one of its own."
            )

    def unread(self, result: SearchResult) -> list[str]:
        """What of the texts the model does not know or cuts off, a line each; none where it reads all."""
        if result.similar_to is not None:
            return []
        one = len(result.texts) == 1
        places = ["your text" if one else f"text {number}" for number in range(1, len(result.texts) + 1)]
        missing = [said.phrase for hits in result[:1] for hit in hits[:1] for said in hit.phrases]
        texts = [*result.texts, *missing]
        return unread_warnings(self.processor, texts, [*places, *(f"{phrase!r}" for phrase in missing)])

    def similar(
        self, session: Session, image: ImageName, *, shown: int = 12, wanted: Filter = NO_FILTER
    ) -> SearchResult:
        """The neighbours, by the embeddings' cosine, of an image of the gallery or of the session.

        They are looked for in the gallery and among the session's own images, and become its result. Of films
        they are other visits; of several cameras, where none was chosen, those before the others.

        Raises:
            RequestError: there is no such image any more, or none that passes the filter.
        """
        shown = self._checked_number(shown, self.limits.images_found)
        with self._current_gallery():
            hit, rows = self._image(session, image), self._rows(wanted)
            if hit.moment is not None and wanted.camera is None and self.facts.cameras > 1:
                rows = self.facts.on_other_cameras(hit.moment.camera, rows)
            if rows is not None and not len(rows) and not session.own_images:
                raise RequestError("No image passes the filter: choose another one.")
            result = self.gallery.similar(hit, shown, rows=rows, extra=list(session.own_images))
            of = None if hit.extra else image  # an upload is nobody's business
            self.log(session.visitor, "similar", image=of, asked=_said(wanted), shown=_shown(result))
            session.result = result
            session.question = Question(image=image, wanted=wanted)
            session.opened, session.page = self.opened, 0
        return session.result

    def image(self, image: str) -> SearchHit:
        """An image of the gallery by its name; raises RequestError where there is none."""
        return self._image(Session(), image)

    def hit(self, session: Session, answer: int, image: ImageName) -> tuple[str, SearchHit]:
        """One image of the session's result, and the text that found it.

        Raises:
            RequestError: there is no such image any more.
        """
        with self._current_gallery():
            hit = self._asked(session, answer, image)  # who asked for no answer is told so
            if hit.extra is None:
                self.log(session.visitor, "image", image=hit.id, edge=VIEWED_EDGE)
            return self._result(session).texts[answer], hit

    def explain(
        self, session: Session, answer: int, image: ImageName
    ) -> tuple[str, SearchHit, Explanation | None]:
        """Why one image of the session's result was found: the text, the image, and the reasons.

        There are none for an image that was found by its likeness to another.

        Raises:
            RequestError: there is no such image any more, or its file is gone.
        """
        with self._current_gallery():
            hit = self._asked(session, answer, image)
            result = self._result(session)
            text = result.texts[answer]
            try:
                return text, hit, None if result.similar_to is not None else self.gallery.explain(hit, text)
            except GalleryError as error:
                logger.warning("%s", error)
                raise RequestError("The image's file cannot be read, so it cannot be explained.") from error

    def full_size(self, session: Session, image: ImageName) -> tuple[str, bytes]:
        """A name to save an image under, and the image of all its pixels as JPEG, with nothing beside them.

        Raises:
            RequestError: it is gone.
        """
        with self._current_gallery():
            hit = self._image(session, image)
            content = self.large(hit, None)
        if content is None:
            raise RequestError("The image's file cannot be read.")
        if hit.extra is None:
            self.log(session.visitor, "image", image=hit.id, edge=None)
        name = hit.id if hit.moment is None else clip_name(hit.moment)
        return f"{PurePosixPath(name).stem}.jpg", content

    def turn(self, session: Session, page: int, shown: int) -> None:
        """Brings another page of the session's result in sight, as far as there are; raises RequestError."""
        shown = self._checked_number(shown, self.limits.images_shown)
        most = max(map(len, session.result or []), default=0)
        last = max(most - 1, 0) // shown
        session.page = min(page, last) if isinstance(page, int) and page > 0 else 0
        session.shown = shown

    def name_of(self, session: Session, hit: SearchHit) -> ImageName:
        """By which an image of a result is asked for again."""
        if hit.extra is None:
            return hit.id
        own = session.own_images
        return own.index(hit.extra) if hit.extra in own else -1

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
                encoded = self.gallery.encode_image(image, file.name, OWN_EDGE)
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

    def prepare_cards(self, hits: Iterable[SearchHit]) -> None:
        """Decodes the images of cards beside each other: photographs take a tenth of a second each."""
        rows = {hit.row for hit in hits if hit.row is not None}
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._card_of_row, rows))

    def large(self, hit: SearchHit, edge: int | None = VIEWED_EDGE) -> bytes | None:
        """A copy of an image to look at, as JPEG; the gallery's thumbnail where its file is gone.

        Args:
            edge: of its longer side, in pixels; `None`: as the image has them.
        """
        if hit.extra is not None:
            return hit.extra.thumbnail
        if hit.row is None:
            return None
        image = self._file(hit.row, edge)
        if image is None:
            image = self._thumbnail(hit.row)
        return None if image is None else self._shown(image, hit.row, edge or max(image.size))

    def _read_card(self, row: int) -> bytes | None:
        image = self._thumbnail(row)
        if image is None:
            image = self._file(row, 2 * CARD_EDGE)
        return None if image is None else self._shown(image, row, CARD_EDGE)

    def _shown(self, image: Image.Image, row: int, edge: int) -> bytes:
        """As JPEG, with faces covered where they are to be."""
        return jpeg_thumbnail(self.gallery.covered(image, row), edge)

    def _thumbnail(self, row: int) -> Image.Image | None:
        thumbnail = self.gallery.stored.thumbnail(row)
        return None if thumbnail is None else load_image(io.BytesIO(thumbnail))

    def _file(self, row: int, edge: int | None, stored: StoredGallery | None = None) -> Image.Image | None:
        gallery, stored = self.gallery, stored or self.gallery.stored
        if stored.record(row)["path"] is None:
            return None
        try:
            return stored.open_file(row, gallery.images_root, gallery.follow_links, edge)
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

    def _checked_number(self, shown: int, most: int) -> int:
        is_number = isinstance(shown, int | float) and math.isfinite(shown)
        if not is_number or not 1 <= shown <= most:
            raise RequestError(f"Between 1 and {most} images can be shown.")
        return int(shown)

    def _rows(self, wanted: Filter) -> np.ndarray | None:
        by_clock = any(isinstance(time, datetime) for time in (wanted.seen_from, wanted.seen_to))
        if by_clock and not self.facts.knows_clock:
            raise RequestError("No film says when it began: write times of a film, such as 00:01:12.")
        return self.facts.rows(wanted) if wanted else None

    def _image(self, session: Session, image: ImageName) -> SearchHit:
        """An image by its name, which comes from a browser, and that may send anything."""
        if isinstance(image, str):
            try:
                (row,) = self.gallery.stored.rows_of([image])
            except KeyError as error:
                raise MissingError("The gallery has no image of this name.") from error
            return SearchHit(image, 1, None, row=row, moment=self.gallery.stored.moment(row))
        own = session.own_images
        if isinstance(image, int) and not isinstance(image, bool) and 0 <= image < len(own):
            return SearchHit(own[image].id, 1, None, extra=own[image])
        raise RequestError("This image of yours is gone: add it again.")

    def _asked(self, session: Session, answer: int, image: ImageName) -> SearchHit:
        """The hit of an answer by its number from 0 and its image's name, as of `_image`."""
        result = self._result(session)
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(result):
            raise RequestError("There is no such image in your result.")
        asked = self._image(session, image)
        found = next((hit for hit in result[answer] if hit.is_same_image(asked)), None)
        if found is None:
            raise RequestError("There is no such image in your result.")
        return found

    def _result(self, session: Session) -> SearchResult:
        if session.result is not None and session.opened != self.opened:
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
                self.gallery.refresh()
                if self.gallery.stored is not self._looked_at:  # which a search may have opened anew as well
                    self.opened += 1
                    self._card_of_row.cache_clear()
                    self._look_at_rows()
                    logger.info("the gallery was changed: %d images now", len(self.gallery))
                yield
            except (FileNotFoundError, GalleryError) as error:
                logger.error("%s", error)
                raise UnavailableError(
                    "The gallery cannot be searched as it is now. The server's log says why."
                ) from error


def _line(visitor: Visitor, event: str, **what: Any) -> dict[str, Any]:
    """Of the audit log."""
    return {"who": visitor.name, "client": visitor.address, "event": event, **what}


NOT_ASKED = (None, False, (), [])


def _searched(asked: Asked, result: SearchResult) -> dict[str, Any]:
    """The line of a search."""
    how: dict[str, Any] = {"top_k": asked.top_k, "rerank": asked.rerank, "sca": asked.sca}
    how |= {"coverage": asked.coverage, "must": asked.feedback.must, "must_not": asked.feedback.must_not}
    for name in ("liked", "disliked"):  # one's own images are numbers
        how[name] = [own for own in map(name_of, getattr(asked.feedback, name)) if isinstance(own, str)]
    said = _said(asked.wanted) | {name: value for name, value in how.items() if value not in NOT_ASKED}
    return _line(asked.visitor, "search", texts=list(result.texts), asked=said, shown=_shown(result))


def _said(wanted: Filter) -> dict[str, str]:
    return {name: written(value) for name, value in wanted if value is not None}


def _shown(result: SearchResult) -> list[list[str]]:
    """The gallery's images of each answer by their ids; one's own are left out."""
    return [[hit.id for hit in hits if hit.extra is None] for hits in result]
