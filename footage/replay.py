"""Standing queries over old footage: how many alarms a day they raise there, and what they miss."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.json_records import json_records
from ..data.text_files import read_text
from .films import read_clock
from .standing import (
    A_DAY,
    Alarm,
    StandingQueries,
    footage_of,
    interval_a_day,
    same_settings,
    seconds_watched,
)

if TYPE_CHECKING:
    from ..search.gallery import Gallery

LABELS = ("camera", "start_s", "end_s", "text")


@dataclass(frozen=True)
class TrueMoment:
    """What really happened.

    Attributes:
        camera: as `tpas footage list` names it.
        start_s, end_s: of its film; a film that lasts into it shows it.
        text: the standing query that speaks of it; None: any.
    """

    camera: str
    start_s: float
    end_s: float
    text: str | None = None

    def is_shown_by(self, alarm: Alarm) -> bool:
        return (
            self.camera == alarm.moment.camera
            and self.text in (None, alarm.text)
            and alarm.moment.start_s <= self.end_s
            and self.start_s <= alarm.moment.end_s
        )

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in LABELS}


@dataclass(frozen=True)
class Replay:
    """What standing queries make of a gallery.

    Attributes:
        days: of footage that was watched.
        visits: in it.
        alarms: by camera, time and text.
        truth: what happened; None where nobody said it.
    """

    queries: StandingQueries
    days: float
    visits: int
    alarms: list[Alarm]
    truth: list[TrueMoment] | None

    @classmethod
    def of(
        cls, queries: StandingQueries, gallery: "Gallery", truth: Sequence[TrueMoment] | None = None
    ) -> "Replay":
        """Replays a gallery of `tpas footage build`, opened with the model.

        Raises:
            ValueError: there is no footage in it, or it was made in another way than the reference; or a true
                moment is of a camera that it does not have, or of another text.
        """
        records = footage_of(gallery.path)
        queries.check_settings(same_settings(records))
        cameras = {record.camera for record in records}
        for moment in truth or ():
            if moment.camera not in cameras:
                some = ", ".join(sorted(cameras)[:10])
                raise ValueError(f"a true moment is of the camera {moment.camera!r}, and there are {some}")
            if moment.text is not None and moment.text not in queries.texts:
                raise ValueError(f"a true moment is of the text {moment.text!r}, which is not asked")
        days = sum(map(seconds_watched, records)) / A_DAY
        visits = sum(len(record.visits) for record in records)
        return cls(queries, days, visits, queries.find(gallery), None if truth is None else list(truth))

    @property
    def missed(self) -> list[TrueMoment]:
        return [moment for moment in self.truth or () if not any(map(moment.is_shown_by, self.alarms))]

    @property
    def false_alarms(self) -> list[Alarm]:
        """Where nobody said what happened, all."""
        truth = self.truth or ()
        return [alarm for alarm in self.alarms if not any(moment.is_shown_by(alarm) for moment in truth)]

    def to_json(self) -> dict[str, Any]:
        false, texts = self.false_alarms, self.queries.texts
        low, high = interval_a_day(len(false), self.days)
        content = {
            "hours": round(24 * self.days, 3),
            "visits": self.visits,
            "alarms_per_day_stated": self.queries.alarms_per_day,
            "alarms": [alarm.to_json() for alarm in self.alarms],
            "false_alarms": len(false),
            "false_alarms_a_day": round(len(false) / self.days, 4),
            "false_alarms_a_day_95": [round(low, 4), round(high, 4)],
            "texts": [
                {
                    "text": text,
                    "limit": self.queries.best[number][-1],
                    "alarms": sum(alarm.text == text for alarm in self.alarms),
                    "false_alarms": sum(alarm.text == text for alarm in false),
                }
                for number, text in enumerate(texts)
            ],
        }
        if self.truth is not None:
            content |= {"true_moments": len(self.truth), "missed": [own.to_json() for own in self.missed]}
        return content


def read_truth(path: Path) -> list[TrueMoment]:
    """The true moments of a file: JSON Lines, a JSON array, or CSV with these columns.

    camera, start_s, end_s, and `text`, which may be left out; times are seconds or 00:01:12.4.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such moment; names it.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else json_records(str(path), path)
    found = []
    for line, row in rows:
        where = f"{path}, line {line}"
        if not isinstance(row, dict) or not {*LABELS[:3]} <= row.keys():
            raise ValueError(f"{where}: a true moment has {', '.join(LABELS)}, got {row!r:.80}")
        try:
            start_s, end_s = (read_clock(str(row[name])) for name in LABELS[1:3])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if end_s < start_s:
            raise ValueError(f"{where}: it ends at {end_s:g} s, before it begins at {start_s:g} s")
        found.append(TrueMoment(str(row["camera"]), start_s, end_s, row.get("text") or None))
    return found


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, {(name or "").strip(): value for name, value in row.items()}
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
