"""By what the images of a gallery can be filtered: folder, camera, time, and what annotations say."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime
from functools import cached_property
from pathlib import PurePosixPath
from sys import intern
from typing import Any

from ..data.moments import Moment, clock
from ..search.stored_gallery import Record
from .labels import ImageLabel

MOST_CHOICES = 300  # of one filter; of folders the upper ones are kept
# As in camera1/0001.jpg, cam_02-0001.jpg, and 0001_c1s1_000151.jpg of Market-1501 and its like.
CAMERA = re.compile(r"(?<![^\W_])(cam(?:era)?[ _-]?\d{1,4}|c\d{1,3}(?=s\d|_))(?![^\W\d_]{2})", re.IGNORECASE)


@dataclass(frozen=True)
class Filter:
    """Which images of the gallery are searched; what is None lets all pass.

    Attributes:
        folder: also the folders in it.
        since, until: days, both included, of the file's last change when it was encoded.
        seen_from, seen_to: of films: visits that last into this time; seconds since the film's beginning, or
            the wall clock's time with its zone.
    """

    folder: str | None = None
    camera: str | None = None
    behaviour: str | None = None
    action: str | None = None
    scene: str | None = None
    since: date | None = None
    until: date | None = None
    seen_from: float | datetime | None = None
    seen_to: float | datetime | None = None

    def __bool__(self) -> bool:
        return any(value is not None for _, value in self)

    def __iter__(self) -> Iterator[tuple[str, str | date | float | None]]:
        """Each by the name that an address gives it."""
        return ((each.name.removeprefix("seen_"), getattr(self, each.name)) for each in fields(self))


NO_FILTER = Filter()
CHOSEN = ("folder", "camera", "behaviour", "action", "scene")  # of a few values each
TYPED = ("since", "until", "from", "to")


def written(value: str | date | float) -> str:
    """A filter's value as a person writes it; the wall clock's time is this machine's."""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return clock(value) if isinstance(value, float) else str(value)


class Facts:
    """What is known of each row of a gallery; labels go before what film and path say.

    Attributes:
        moments: of each row, None of what is of no film.
    """

    def __init__(self, records: Iterable[Record], labels: Iterable[ImageLabel | None]):
        self.columns: dict[str, list[str | None]] = {name: [] for name in CHOSEN}
        self.days: list[date | None] = []
        self.moments: list[Moment | None] = []
        unlabelled = ImageLabel()
        for record, label in zip(records, labels, strict=True):
            known = label or unlabelled
            moment = Moment.from_record(record["moment"]) if "moment" in record else None
            self.moments.append(moment)
            folder = PurePosixPath(record["id"] if moment is None else moment.camera).parent.as_posix()
            named = moment.camera if moment is not None else None
            if named is None and (found := CAMERA.search(record["id"])):
                named = found[1]
            camera = known.camera or named
            values = (folder, camera, known.behaviour, known.action, known.scene)
            for name, value in zip(CHOSEN, values, strict=True):
                self.columns[name].append(None if value is None else intern(value))
            self.days.append(_day(record) if moment is None else None)

    def choices(self, name: str) -> dict[str, int]:
        """A filter's values with their numbers of images, the commonest first; none where all are alike.

        The images of one visit in a film count once.
        """
        visits = (row if moment is None else moment.visit for row, moment in enumerate(self.moments))
        counted = {(value, visit) for value, visit in zip(self.columns[name], visits, strict=True)}
        counts = Counter(value for value, _ in counted if value is not None)
        if name == "folder":
            return _folders(counts)
        return dict(counts.most_common(MOST_CHOICES)) if len(counts) > 1 else {}

    @property
    def span(self) -> tuple[date, date] | None:
        """The first day and the last; None where all are alike."""
        known = {day for day in self.days if day is not None}
        return (min(known), max(known)) if len(known) > 1 else None

    @property
    def first_sight(self) -> float | datetime | None:
        """When the first visit begins, by the wall clock where that is known of all; None without films."""
        return min(self._times("started", "start_s"), default=None)

    @property
    def last_sight(self) -> float | datetime | None:
        """When the last ends, likewise."""
        return max(self._times("ended", "end_s"), default=None)

    def _times(self, of_clock: str, of_film: str) -> list[Any]:
        moments = [moment for moment in self.moments if moment is not None]
        known = all(moment.started_at is not None for moment in moments)
        return [getattr(moment, of_clock if known else of_film) for moment in moments]

    @cached_property
    def cameras(self) -> int:
        """How many there are that films are of."""
        return len({moment.camera for moment in self.moments if moment is not None})

    @cached_property
    def visits(self) -> int:
        """How many there are in films."""
        return len({moment.visit for moment in self.moments if moment is not None})

    @property
    def knows_clock(self) -> bool:
        """Whether a film says when it began."""
        return any(moment is not None and moment.started_at is not None for moment in self.moments)

    def rows(self, wanted: Filter) -> list[int]:
        """Those that pass."""
        rows: Iterable[int] = range(len(self.days))
        for name in CHOSEN:
            value, column = getattr(wanted, name), self.columns[name]
            if value is None:
                continue
            if name == "folder":
                rows = [row for row in rows if f"{column[row]}/".startswith(f"{value}/")]
            else:
                rows = [row for row in rows if column[row] == value]
        if wanted.seen_from is not None or wanted.seen_to is not None:
            seen = wanted.seen_from, wanted.seen_to
            rows = [row for row in rows if (of := self.moments[row]) is not None and of.lasts_into(*seen)]
        if wanted.since is None and wanted.until is None:
            return list(rows)
        since, until = wanted.since or date.min, wanted.until or date.max
        return [row for row in rows if (day := self.days[row]) is not None and since <= day <= until]


def _day(record: Record) -> date | None:
    """The day of a file's last change at this machine's place; None where it is not known."""
    try:
        return date.fromtimestamp(record.get("state", [])[1] // 10**9)
    except (IndexError, TypeError, ValueError, OverflowError, OSError):
        return None


def _folders(counts: Mapping[str, int]) -> dict[str, int]:
    """Every folder with the images in and below it, by name; of many the upper ones."""
    below: Counter[str] = Counter()
    for folder, count in counts.items():
        for each in (folder, *(parent.as_posix() for parent in PurePosixPath(folder).parents)):
            below[each] += count
    total = sum(counts.values())
    telling = {name: count for name, count in below.items() if name not in (".", "/") and count < total}
    for depth in range(max((name.count("/") for name in telling), default=0), -1, -1):
        if len(telling) <= MOST_CHOICES:
            break
        telling = {name: count for name, count in telling.items() if name.count("/") < depth}
    return dict(sorted(telling.items()))
