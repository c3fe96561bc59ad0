"""When and where in a film a person was seen: what an image cut from a film knows beside its pixels."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Moment:
    """One visit of one person before one camera, and the view that an image shows of it.

    Attributes:
        camera: its name, such as "cam1.mp4".
        start_s, end_s: first and last sight, in seconds since the film's beginning.
        track: the visit's number, from 1, of this camera.
        box: left, top, width and height of the person in the view, in pixels of the whole frame.
        seen_s: when the view was taken.
        film: the film's path or address; None where it is not known.
        started_at: the wall clock at the film's beginning, with its zone, in ISO 8601; None likewise.
        frame: the file of the whole frame, small, beside the image's; None where none was kept.
        size: width and height of the whole frame in the film; None likewise.
    """

    camera: str
    start_s: float
    end_s: float
    track: int
    box: Box
    seen_s: float
    film: str | None = None
    started_at: str | None = None
    frame: str | None = None
    size: tuple[int, int] | None = None

    def __str__(self) -> str:
        """As in "00:01:12.4 to 00:01:19.0 cam1.mp4"."""
        return f"{clock(self.start_s)} to {clock(self.end_s)} {self.camera}"

    @property
    def visit(self) -> tuple[str, int]:
        """What all images of one visit share."""
        return self.camera, self.track

    @property
    def started(self) -> datetime | None:
        """The wall clock's time of the first sight."""
        return self.at(self.start_s)

    @property
    def ended(self) -> datetime | None:
        return self.at(self.end_s)

    def at(self, seconds: float) -> datetime | None:
        """The wall clock's time, where it is known."""
        began = None if self.started_at is None else datetime.fromisoformat(self.started_at)
        return None if began is None else began + timedelta(seconds=seconds)

    def lasts_into(self, since: float | datetime | None, until: float | datetime | None) -> bool:
        """Whether the visit touches a time, of the film or of the wall clock, open at a side that is None.

        By the wall clock only where that is known.
        """
        if self.started_at is None and (isinstance(since, datetime) or isinstance(until, datetime)):
            return False
        return self.end_s >= self._of_film(since, -math.inf) and self.start_s <= self._of_film(
            until, math.inf
        )

    def _of_film(self, time: float | datetime | None, otherwise: float) -> float:
        if isinstance(time, datetime):
            assert self.started_at is not None, "was looked at"
            return seconds_of_film(time, self.started_at)
        return otherwise if time is None else time

    def to_json(self) -> dict[str, Any]:
        """As answers give it."""
        return {
            "camera": self.camera,
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "track": self.track,
            "box": [round(side, 1) for side in self.box],
        }

    def to_record(self) -> dict[str, Any]:
        """As a gallery keeps it."""
        known: dict[str, Any] = {"film": self.film, "started_at": self.started_at, "frame": self.frame}
        known["size"] = None if self.size is None else list(self.size)
        known = {name: value for name, value in known.items() if value is not None}
        return self.to_json() | {"seen_s": round(self.seen_s, 3)} | known

    @classmethod
    def from_record(cls, record: Any) -> "Moment":
        """What `to_record` made; ValueError or TypeError for anything else."""
        numbers = [record["start_s"], record["end_s"], record["seen_s"], *record["box"]]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"a moment's times and box are numbers, got {numbers}")
        if not isinstance(record["camera"], str) or not isinstance(record["track"], int):
            raise TypeError(f"a moment has a camera's name and a track's number, got {record}")
        if abs(record["track"]) >= 2**63:
            raise ValueError("a track's number has at most 18 digits")
        left, top, width, height = map(float, record["box"])
        words = {name: record.get(name) for name in ("film", "started_at", "frame")}
        if not all(isinstance(word, str | None) for word in words.values()):
            raise TypeError(f"a moment's film, start and frame are words, got {words}")
        size = record.get("size")
        if size is not None and not (
            len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
        ):
            raise ValueError(f"a whole frame has a width and a height, got {size}")
        if words["started_at"] is not None and datetime.fromisoformat(words["started_at"]).tzinfo is None:
            raise ValueError(f"a moment's start has an offset from UTC, got {words['started_at']}")
        return cls(
            record["camera"],
            float(record["start_s"]),
            float(record["end_s"]),
            record["track"],
            (left, top, width, height),
            float(record["seen_s"]),
            **words,
            size=None if size is None else (size[0], size[1]),
        )


def seconds_of_film(time: datetime, started_at: str) -> float:
    """A wall clock's time in seconds since the beginning of a film, of `Moment.started_at`."""
    return (time - datetime.fromisoformat(started_at)).total_seconds()


def clock(seconds: float) -> str:
    """A time of a film as hours, minutes and seconds, rounded down to tenths.

    >>> clock(72.45)
    '00:01:12.4'
    """
    tenths = math.floor(seconds * 10 + 1e-6)
    return f"{tenths // 36000:02d}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"
