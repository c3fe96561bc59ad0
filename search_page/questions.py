"""What is asked of the page, as its address holds it: reload and sharing ask the same again.

`?q=a+man+in+red&folder=camera1&since=2026-01-31`; several texts are the lines of `q`. `must` and `must_not`
are phrases between commas, `liked` and `disliked` images of the gallery, a line each. In place of texts
`like` names an image of the gallery, and `own` an uploaded one by its number in the session: of an upload an
address holds neither content nor name.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from ..footage.films import read_clock
from ..search.feedback import Feedback, name_of
from .filters import CHOSEN, Filter, written

WHO = "x-tpas-who"  # a header of this server's own, with the name of the visitor's key
ANY = "any"  # chosen in a filter that lets all pass
MOST_CHARACTERS = 40  # of a time
MARKS = ("liked", "disliked")
ImageName = str | int  # of the gallery by its id, of a session's own by its number from 0


class RequestError(ValueError):
    """What was asked for cannot be done; the message is for the person who asked.

    Attributes:
        status: of HTTP, for a program that asked.
    """

    status = 400


class MissingError(RequestError):
    """There is no such image."""

    status = 404


class UnavailableError(RequestError):
    """It cannot be done now: the server's log says why."""

    status = 503


class UnloggedError(RequestError):
    """It could not be put into the audit log, so it is not shown."""

    status = 507


@dataclass(frozen=True)
class Visitor:
    """Who asks, as the audit log calls them.

    Attributes:
        name: of their key; None without one.
        address: of their machine, or network.
    """

    name: str | None = None
    address: str | None = None


@dataclass(frozen=True)
class Asked:
    """Texts that a program asks, without a session.

    Attributes:
        top_k: images in each answer.
        rerank, coverage: as in `Gallery.search`.
        sca: whether SCA resolves the texts' collisions.
        feedback: for all the texts.
    """

    texts: tuple[str, ...]
    top_k: int = 10
    wanted: Filter = Filter()
    rerank: bool | None = None
    sca: bool = False
    coverage: float | None = None
    feedback: Feedback = Feedback()
    visitor: Visitor = Visitor()

    @property
    def settings(self) -> Hashable:
        """Questions of equal ones can be answered in one pass; SCA looks at the texts of one alone."""
        return id(self) if self.sca else (self.wanted, self.rerank, self.coverage, self.feedback)


@dataclass(frozen=True)
class Question:
    """Texts, or the image whose like is looked for."""

    texts: tuple[str, ...] = ()
    image: ImageName | None = None
    wanted: Filter = Filter()
    sca: bool = False
    feedback: Feedback = Feedback()

    @classmethod
    def of_address(cls, said: Mapping[str, Any]) -> "Question":
        """From an address's values, which anybody may have written; raises RequestError."""
        image, own = said.get("like"), said.get("own")
        if own is not None:
            image = int(own) if str(own).isdecimal() and len(str(own)) < 9 else -1
        elif image is not None:
            image = str(image)
        texts = () if image is not None else tuple(str(said.get("q") or "").split("\n"))
        if image is not None:
            return cls((), image, wanted_of(said))
        phrases = {name: _parts(said.get(name), "[,\n]") for name in ("must", "must_not")}
        marks = {name: _parts(said.get(name), "\n") for name in MARKS}
        try:
            feedback = Feedback.of(**phrases, **marks)
        except ValueError as error:
            raise RequestError(f"{str(error)[0].upper()}{str(error)[1:]}.") from error
        return cls(texts, None, wanted_of(said), bool(said.get("sca")) and len(texts) > 1, feedback)

    @property
    def address(self) -> str:
        """The query of the page's address."""
        asked = {"own": self.image} if isinstance(self.image, int) else {"like": self.image}
        asked = {"q": "\n".join(self.texts)} if self.image is None else asked
        parts = {"must": ", ", "must_not": ", ", "liked": "\n", "disliked": "\n"}
        asked |= {name: parts[name].join(map(name_of, said)) for name, said in self.feedback.settings.items()}
        wanted = {name: written(value) for name, value in self.wanted if value is not None}
        return "?" + urlencode(asked | wanted | ({"sca": 1} if self.sca else {}))

    def said(self, name: str, one: str) -> "Question":
        """With an image or a phrase more among `name`, or, where it is among them, less."""
        before = getattr(self.feedback, name)
        others = {mark: _less(getattr(self.feedback, mark), one) for mark in MARKS if name in MARKS}
        after = {name: _less(before, one) if one in before else (*before, one)}
        return replace(self, feedback=replace(self.feedback, **others | after))


def _less(said: tuple[Any, ...], one: str) -> tuple[Any, ...]:
    return tuple(other for other in said if other != one)


def _parts(said: Any, between: str) -> list[str]:
    return [part.strip() for part in re.split(between, str(said or "")) if part.strip()]


def wanted_of(said: Mapping[str, Any]) -> Filter:
    """The filter that a form or an address names; raises RequestError for a day or a time that is none."""
    chosen = {name: str(said[name]) for name in CHOSEN if said.get(name) not in (None, "", ANY)}
    return Filter(
        **chosen,
        since=_day(said.get("since")),
        until=_day(said.get("until")),
        seen_from=_time(said.get("from")),
        seen_to=_time(said.get("to"), at_end=True),
    )


def _day(value: Any) -> date | None:
    try:
        return date.fromisoformat(value.strip()) if value else None
    except (AttributeError, ValueError) as error:
        raise RequestError("A day is written as 2026-01-31.") from error


def _time(value: Any, at_end: bool = False) -> float | datetime | None:
    """A time of a film in seconds, or of the wall clock, in this machine's zone where none is named.

    Args:
        at_end: a day alone is its last moment, and not its first.
    """
    text = str(value or "").strip()[:MOST_CHARACTERS]
    try:
        if "-" not in text:
            return read_clock(text) if text else None
        time = datetime.fromisoformat(text)
        if at_end and len(text) == len("2026-01-31"):
            time += timedelta(days=1, microseconds=-1)
        return time.astimezone()
    except (ValueError, OverflowError) as error:
        raise RequestError("A time is written as 00:01:12 of a film, or as 2026-01-31 08:00.") from error
