"""By what the images of a gallery can be filtered: folder, camera, time, and what annotations say."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ..data.moments import clock
from ..search.columns import NONE, Columns, coded
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

    Args:
        columns: the gallery's.
        labels: of each row.

    Attributes:
        chosen: by each name of `CHOSEN`: (G,) places of the rows' values, `NONE` where none is known, and the
            values.
        days: (G,) of the file's last change, as `date.toordinal`; 0: not known, or of a film.
    """

    def __init__(self, columns: Columns, labels: Sequence[ImageLabel | None]):
        self.of = columns
        self.of_film = columns.camera != NONE  # (G,)
        beside = np.flatnonzero(~self.of_film)
        names = list(columns.ids(beside))
        folder = self._of_all(map(_folder, columns.cameras), beside, map(_folder, names))
        camera = self._of_all(columns.cameras, beside, map(_named_camera, names))
        said: dict[str, list[str | None]] = {name: [None] * len(columns) for name in CHOSEN[2:]}
        for row, label in enumerate(labels):
            if label is not None:
                camera[row] = label.camera or camera[row]
                for name, values in said.items():
                    values[row] = getattr(label, name)
        self.chosen = {"folder": coded(folder), "camera": coded(camera)}
        self.chosen |= {name: coded(values) for name, values in said.items()}
        self.days = np.zeros(len(columns), np.int64)
        self.days[beside] = [_day(seconds) for seconds in columns.changed_s[beside].tolist()]

    def _of_all(
        self, of_cameras: Iterable[str], rows: np.ndarray, of_rows: Iterable[str | None]
    ) -> list[str | None]:
        """Of each row its camera's value, or where it is of no film its own."""
        by_camera = np.array([*of_cameras, None], object)
        values = by_camera[self.of.camera]
        values[rows] = np.fromiter(of_rows, object, len(rows))
        return values.tolist()

    def choices(self, name: str) -> dict[str, int]:
        """A filter's values with their numbers of images, the commonest first; none where all are alike.

        The images of one visit in a film count once.
        """
        codes, values = self.chosen[name]
        visits = self.of.visits
        first = visits == np.arange(len(visits))
        others = np.flatnonzero(codes != codes[visits])  # few: the images of a visit are mostly alike
        pairs = np.unique(np.stack([visits[others], codes[others]]), axis=1)
        numbers = np.bincount(np.concatenate([codes[first], pairs[1]]) + 1, minlength=len(values) + 1)
        counts = Counter(dict(zip(values, numbers[1:].tolist(), strict=True)))
        if name == "folder":
            return _folders(counts)
        return dict(counts.most_common(MOST_CHOICES)) if len(counts) > 1 else {}

    @property
    def span(self) -> tuple[date, date] | None:
        """The first day and the last; None where all are alike."""
        known = self.days[self.days > 0]
        first, last = (int(known.min()), int(known.max())) if len(known) else (0, 0)
        return (date.fromordinal(first), date.fromordinal(last)) if first < last else None

    @property
    def first_sight(self) -> float | datetime | None:
        """When the first visit begins, by the wall clock where that is known of all; None without films."""
        return self._sight(self.of.start_s, np.minimum, min)

    @property
    def last_sight(self) -> float | datetime | None:
        """When the last ends, likewise."""
        return self._sight(self.of.end_s, np.maximum, max)

    def _sight(self, seconds: np.ndarray, of_film: np.ufunc, of_all: Callable[..., Any]) -> Any:
        seconds, began = seconds[self.of_film], self.of.began[self.of_film]
        if not len(seconds):
            return None
        if (began == NONE).any():
            return float(of_film.reduce(seconds))
        own = np.full(len(self.of.beginnings), np.nan)
        np.fmin.at(own, began, seconds) if of_film is np.minimum else np.fmax.at(own, began, seconds)
        films = zip(self.of.beginnings, own.tolist(), strict=True)
        return of_all(
            datetime.fromisoformat(film) + timedelta(seconds=time) for film, time in films if time == time
        )

    @cached_property
    def cameras(self) -> int:
        """How many there are that films are of."""
        return len(np.unique(self.of.camera[self.of_film]))

    @cached_property
    def visits(self) -> int:
        """How many there are in films."""
        return len(self.visits_among(None))

    def visits_among(self, rows: np.ndarray | None) -> np.ndarray:
        """The visits in films that these rows (n,) are of, or all: of each its first row, in their order."""
        rows = np.arange(len(self.of)) if rows is None else rows
        rows = rows[self.of_film[rows]]
        return rows[np.sort(np.unique(self.of.visits[rows], return_index=True)[1])]

    @property
    def knows_clock(self) -> bool:
        """Whether a film says when it began."""
        return bool((self.of.began != NONE).any())

    def rows(self, wanted: Filter) -> np.ndarray:
        """Those that pass, (n,)."""
        passes = np.ones(len(self.of), bool)
        for name in CHOSEN:
            value = getattr(wanted, name)
            if value is not None:
                codes, values = self.chosen[name]
                inside = f"{value}/" if name == "folder" else value
                fits = [f"{own}/".startswith(inside) if name == "folder" else own == value for own in values]
                passes &= np.array([*fits, False])[codes]
        if wanted.since is not None or wanted.until is not None:
            since, until = wanted.since or date.min, wanted.until or date.max
            passes &= (since.toordinal() <= self.days) & (self.days <= until.toordinal())
        rows = np.flatnonzero(passes)
        if wanted.seen_from is None and wanted.seen_to is None:
            return rows
        return self.of.lasting_into(rows[self.of_film[rows]], wanted.seen_from, wanted.seen_to)

    def on_other_cameras(self, camera: str, rows: np.ndarray | None) -> np.ndarray:
        """Those of the rows (n,), or of all, that no film of this camera shows."""
        rows = np.arange(len(self.of)) if rows is None else rows
        return rows[~np.isin(rows, self.of.of_cameras(lambda name: name == camera))]


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.as_posix()


def _named_camera(image: str) -> str | None:
    """What an image's path says."""
    found = CAMERA.search(image)
    return None if found is None else found[1]


def _day(seconds: int) -> int:
    """The day at this machine's place, as `date.toordinal`; 0 where it is not known."""
    try:
        return date.fromtimestamp(seconds).toordinal()
    except (ValueError, OverflowError, OSError):
        return 0


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
