"""By what the images of a gallery can be filtered: folder, camera, date, and what annotations say."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import date
from pathlib import PurePosixPath
from sys import intern

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
    """

    folder: str | None = None
    camera: str | None = None
    behaviour: str | None = None
    action: str | None = None
    scene: str | None = None
    since: date | None = None
    until: date | None = None

    def __bool__(self) -> bool:
        return any(value is not None for _, value in self)

    def __iter__(self) -> Iterator[tuple[str, str | date | None]]:
        return ((each.name, getattr(self, each.name)) for each in fields(self))


NO_FILTER = Filter()
CHOSEN = ("folder", "camera", "behaviour", "action", "scene")  # of a few values each


class Facts:
    """What is known of each row of a gallery; labels go before what the path says."""

    def __init__(self, records: Iterable[Record], labels: Iterable[ImageLabel | None]):
        self.columns: dict[str, list[str | None]] = {name: [] for name in CHOSEN}
        self.days: list[date | None] = []
        unlabelled = ImageLabel()
        for record, label in zip(records, labels, strict=True):
            known = label or unlabelled
            folder = PurePosixPath(record["id"]).parent.as_posix()
            camera = known.camera or (found[1] if (found := CAMERA.search(record["id"])) else None)
            values = (folder, camera, known.behaviour, known.action, known.scene)
            for name, value in zip(CHOSEN, values, strict=True):
                self.columns[name].append(None if value is None else intern(value))
            self.days.append(_day(record))

    def choices(self, name: str) -> dict[str, int]:
        """A filter's values with their numbers of images, the commonest first; none where all are alike."""
        counts = Counter(value for value in self.columns[name] if value is not None)
        if name == "folder":
            return _folders(counts)
        return dict(counts.most_common(MOST_CHOICES)) if len(counts) > 1 else {}

    @property
    def span(self) -> tuple[date, date] | None:
        """The first day and the last; None where all are alike."""
        known = {day for day in self.days if day is not None}
        return (min(known), max(known)) if len(known) > 1 else None

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
