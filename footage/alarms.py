"""Alarms as they are raised: kept so that a kill loses none and none comes twice, cut, shown and sent.

    GALLERY/alarms/alarms.jsonl    a line for each alarm, in the order of raising; for whoever follows it
                   watched.jsonl   which visits were judged, and which alarms are to be sent and were
                   limits.json     of the standing queries
                   clips/          the moments, cut from their films

A line is in the system's hands as one piece, and on the disk, before the next thing is done. What a kill or a
power cut left of a last line is removed at the next start.
"""

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..data.moments import Moment
from ..data.whole_files import explained_full_disk, write_text
from .clips import cut_clip
from .faces import FaceCover
from .records import FilmRecord, KeptVisit
from .sources import plain_camera
from .standing import Alarm, StandingQueries
from .webhook import Webhook

if TYPE_CHECKING:
    from ..search.gallery import Gallery

logger = logging.getLogger(__name__)

ALARMS = "alarms"  # the folder in a gallery
RAISED, WATCHED, LIMITS, CLIPS = "alarms.jsonl", "watched.jsonl", "limits.json", "clips"


@dataclass(frozen=True)
class QuietHours:
    """A part of each day, which may go over midnight, by this machine's clock."""

    start: time
    end: time

    @classmethod
    def read(cls, text: str) -> Self:
        """What "22:00-06:00" says; ValueError for anything else."""
        found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)\s*-\s*([01]?\d|2[0-3]):([0-5]\d)", text.strip())
        if found is None:
            raise ValueError(f"quiet hours are a time to a time, such as 22:00-06:00, got {text!r}")
        hour, minute, end_hour, end_minute = map(int, found.groups())
        start, end = time(hour, minute), time(end_hour, end_minute)
        if start == end:
            raise ValueError(
                f"quiet hours from {start:%H:%M} to {end:%H:%M} are none, or all: name two times"
            )
        return cls(start, end)

    def hold(self, moment: datetime) -> bool:
        clock = moment.astimezone().time()
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end


class AlarmLog:
    """The alarms of one gallery on the disk; for one process at a time, and any of its threads.

    Args:
        folder: made if need be.
        past: films whose visits are taken for judged where the log is new.

    Raises:
        ValueError: a line other than the last is damaged; names it.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, past: Sequence[FilmRecord] = ()):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._writing = threading.Lock()
        self._raised: dict[str, dict[str, Any]] = {}
        self._judged: dict[str, int] = {}
        self._owed: dict[str, None] = {}
        for line in _whole_lines(folder / RAISED):
            self._raised[line["id"]] = line
        if not (folder / WATCHED).exists():
            self._judged = {record.camera: max(record.visits) for record in past if record.visits}
        for line in _whole_lines(folder / WATCHED):
            self._judged |= {plain_camera(name): track for name, track in line.get("judged", {}).items()}
            self._owed |= dict.fromkeys(line.get("owed", ()))
            for name in line.get("sent", ()):
                self._owed.pop(name, None)
        self._owed = {name: None for name in self._owed if name in self._raised}
        whole = json.dumps({"judged": self._judged, "owed": list(self._owed)})
        write_text(folder / WATCHED, f"{whole}\n", durable=True)

    def __contains__(self, name: str) -> bool:
        return name in self._raised

    @property
    def owed(self) -> list[dict[str, Any]]:
        """The alarms that were to be sent and were not yet, in their order."""
        with self._writing:
            return [self._raised[name] for name in self._owed]

    def unjudged(self, record: FilmRecord) -> list[KeptVisit]:
        done = self._judged.get(record.camera, 0)
        return [visit for track, visit in record.visits.items() if track > done]

    def mark_judged(self, records: Sequence[FilmRecord]) -> None:
        last = {record.camera: max(record.visits, default=0) for record in records}
        last = {name: track for name, track in last.items() if track > self._judged.get(name, 0)}
        if last:
            self._append(WATCHED, {"judged": last})
            self._judged |= last

    def add(self, alarm: Alarm, *, to_send: bool = False) -> dict[str, Any]:
        """Keeps an alarm, and returns its line."""
        line = alarm.to_json()
        if to_send:  # first, so that a kill in between owes an alarm that is raised again
            self._append(WATCHED, {"owed": [alarm.id]})
        self._append(RAISED, line)
        with self._writing:
            self._raised[alarm.id] = line
            if to_send:
                self._owed[alarm.id] = None
        return line

    def mark_sent(self, name: str) -> None:
        self._append(WATCHED, {"sent": [name]})
        with self._writing:
            self._owed.pop(name, None)

    def was_raised_as_part(self, moment: Moment, text: str, visits: dict[int, KeptVisit]) -> bool:
        """Whether an alarm was raised for a piece of this visit, at the end of what a film then was."""
        for line in self._raised.values():
            is_of_camera = line["camera"] == moment.camera and line["text"] == text
            overlaps = line["start_s"] <= moment.end_s and moment.start_s <= line["end_s"]
            if is_of_camera and overlaps and line["track"] not in visits:
                return True
        return False

    def _append(self, name: str, line: dict[str, Any]) -> None:
        path = self.folder / name
        with self._writing, explained_full_disk(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                before = os.fstat(descriptor).st_size
                content = json.dumps(line).encode() + b"\n"
                try:
                    if os.write(descriptor, content) < len(content):
                        raise OSError(28, "No space left on device")
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, before)
                    raise
            finally:
                os.close(descriptor)


class Alarms:
    """Judges the visits that a gallery has got, and raises what there is to raise.

    Args:
        show: is given each alarm once it is kept.
        webhook: is given those that are not quiet, and first of all those that it still owes.
        clips: cut the moments.
        faces: what covers them there; None: they are shown.
    """

    def __init__(
        self,
        queries: StandingQueries,
        log: AlarmLog,
        *,
        show: Callable[[Alarm], None] = lambda _: None,
        webhook: Webhook | None = None,
        quiet: QuietHours | None = None,
        clips: bool = True,
        faces: FaceCover | None = None,
    ):
        self.queries, self.log, self.show = queries, log, show
        self.webhook, self.quiet, self.clips, self.faces = webhook, quiet, clips, faces
        if webhook is not None:
            for line in log.owed:
                webhook.put(line)

    def judge(self, gallery: "Gallery", records: Sequence[FilmRecord]) -> None:
        """Looks at each visit once, whenever it was found."""
        new = [(record, visit) for record in records for visit in self.log.unjudged(record)]
        ids = [f"{record.camera}/{view.name}" for record, visit in new for view in visit.views]
        try:
            gallery.stored.rows_of(ids)
        except KeyError:  # some could not be read, or were deleted since
            there = {*gallery.stored.ids()}
            ids = [name for name in ids if name in there]
        raised = 0
        if ids:
            visits = {record.camera: record.visits for record in records}
            for alarm in self.queries.find(gallery, ids):
                own = visits[alarm.moment.camera]
                if alarm.id not in self.log and not self.log.was_raised_as_part(
                    alarm.moment, alarm.text, own
                ):
                    self._raise(alarm)
                    raised += 1
        self.log.mark_judged(records)
        if new:
            logger.info("visits judged: %d, alarms: %d", len(new), raised)

    def _raise(self, alarm: Alarm) -> None:
        now = datetime.now().astimezone()
        is_quiet = self.quiet is not None and self.quiet.hold(alarm.moment.started or now)
        clip = self._clip(alarm.moment) if self.clips else None
        alarm = replace(alarm, raised_at=now.isoformat(timespec="seconds"), quiet=is_quiet, clip=clip)
        sends = self.webhook is not None and not is_quiet
        line = self.log.add(alarm, to_send=sends)
        if self.webhook is not None and sends:
            self.webhook.put(line)
        self.show(alarm)

    def _clip(self, moment: Moment) -> str | None:
        try:
            return str(cut_clip(moment, self.log.folder / CLIPS, self.faces).resolve())
        except (OSError, ValueError) as error:  # the alarm is worth more than its clip
            level = logging.INFO if isinstance(error, FileNotFoundError | ValueError) else logging.WARNING
            logger.log(level, "no clip of visit %d: %s", moment.track, error)
            return None


def raised_in(gallery: Path) -> list[dict[str, Any]]:
    """The alarms that were raised in a gallery, of all its cameras, the newest first; see `Alarm.to_json`.

    Raises:
        ValueError: a line other than the last is damaged; names it.
    """
    files = sorted((gallery / ALARMS).rglob(RAISED))
    lines = [line for file in files for line in _whole_lines(file, cut=False)]
    return sorted(
        lines, key=lambda line: datetime.fromisoformat(line["raised_at"]).astimezone(), reverse=True
    )


def _whole_lines(path: Path, cut: bool = True) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON Lines, of which a torn last one is passed over, and removed by `cut`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    whole = content.rfind(b"\n") + 1
    if cut and whole < len(content):
        os.truncate(path, whole)
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            read = json.loads(line)
            if path.name == RAISED:
                _ = read["id"], read["text"], read["camera"], read["track"], read["start_s"], read["end_s"]
                datetime.fromisoformat(read["raised_at"]).astimezone()
            yield dict(read)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is damaged ({error!r}): remove the line, or move the file away"
            ) from error
