"""What was found in a film, kept as it is found: a kill loses nothing finished, and nothing comes twice.

    GALLERY/footage/CAMERA/found.jsonl    a line for each thing that was found, in the order of finding
                           3-1.jpg        a view of visit 3, with a margin
                           3-1.frame.jpg  the whole frame, small

A film can be read again, so what lies after the last quiet moment, when nobody was in sight, does not count
until the next one: it is found again. A stream cannot, so every finished visit counts.
"""

import json
import math
import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..data.moments import Box, Moment
from ..data.whole_files import explained_full_disk, held_alone, replacing
from ..search.manifest import FOOTAGE
from .films import LONGEST_SILENCE_S, Gap
from .following import Visit
from .views import box_at

FOUND = "found.jsonl"
LOCK = "found.lock"  # held by who writes into the other
FORMAT = 1


@dataclass(frozen=True)
class KeptView:
    """A view of a visit, as a file.

    Attributes:
        name: of the crop's file in the record's folder.
        frame: of the whole frame's.
        box: left, top, width and height in pixels of the whole frame.
        size: width and height of the whole frame in the film.
    """

    name: str
    frame: str
    seen_s: float
    box: Box
    size: tuple[int, int]


@dataclass(frozen=True)
class KeptVisit:
    """One visit of a record.

    Attributes:
        boxes: when the person was where, left, top, width and height; none of early records.
    """

    track: int
    start_s: float
    end_s: float
    views: tuple[KeptView, ...]
    boxes: tuple[tuple[float, Box], ...] = ()

    def without(self, names: Collection[str]) -> "KeptVisit":
        return replace(self, views=tuple(view for view in self.views if view.name not in names))

    def to_json(self) -> dict[str, Any]:
        return {
            "track": self.track,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "views": [
                [view.name, view.frame, view.seen_s, list(view.box), list(view.size)] for view in self.views
            ],
            "boxes": [[time_s, *box] for time_s, box in self.boxes],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "KeptVisit":
        views = tuple(
            KeptView(name, frame, seen_s, tuple(box), tuple(size))
            for name, frame, seen_s, box, size in content["views"]
        )
        # The file may come from anybody, and what is forgotten is removed by these names.
        if outside := [
            file for view in views for file in (view.name, view.frame) if "/" in file or ".." in file
        ]:
            raise ValueError(f"a view is a file of the record's own folder, got {outside[0]!r}")
        boxes = tuple((float(time_s), tuple(box)) for time_s, *box in content.get("boxes", ()))
        return cls(int(content["track"]), float(content["start_s"]), float(content["end_s"]), views, boxes)


@dataclass
class FilmRecord:
    """What was found in one camera's film.

    Attributes:
        folder: where it is kept.
        camera: the camera's name.
        about: what the film is and how it was looked at: `film`, `started_at`, `settings`, `is_live`, and
            `duration_s` and `begins_with`, which early records lack.
        visits: that count, by their tracks.
        gaps: times of which the film shows nothing.
        quiet_s: from where on the film has to be looked at.
        end: when it was looked through the film's length `end_s`, its file's `state` and what stands for its
            `content`, which early records lack; None before.
        holds_forgotten: forgotten visits are still in its file, as a kill or an early version left them.
    """

    folder: Path
    camera: str
    about: dict[str, Any] = field(default_factory=dict)
    visits: dict[int, KeptVisit] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    quiet_s: float = 0.0
    end: dict[str, Any] | None = None
    next_track: int = 1
    holds_forgotten: bool = False

    @classmethod
    def read(cls, folder: Path, camera: str) -> "FilmRecord":
        """What counts of a record; an empty one where there is none.

        Raises:
            ValueError: a line other than the last is damaged.
        """
        record = cls(folder, camera)
        try:
            lines = _whole_lines(folder)
        except FileNotFoundError:
            return record
        kept = 0  # lines that count
        waiting: list[KeptVisit] = []
        gaps: list[Gap] = []
        tracks: set[int] = set()  # that are forgotten
        views: set[str] = set()
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if "about" in entry:
                    record.about = entry["about"]
                    record.next_track = max(record.next_track, entry.get("next_track", 1))
                    record.visits, record.gaps, waiting, gaps, record.end = {}, [], [], [], None
                elif "visit" in entry:
                    waiting.append(KeptVisit.from_json(entry["visit"]))
                elif "gap" in entry:
                    gaps.append(Gap(**entry["gap"]))
                elif "forgotten" in entry:
                    tracks.update(entry["forgotten"])
                    views.update(entry.get("views", ()))
                elif "end" in entry:
                    record.end = entry["end"]
                if {"quiet_s", "end", "about"} & entry.keys() or record.about.get("is_live"):
                    record.visits |= {visit.track: visit for visit in waiting}
                    record.gaps += gaps
                    record.next_track = max([record.next_track, *(visit.track + 1 for visit in waiting)])
                    waiting, gaps, kept = [], [], number
                if "quiet_s" in entry:
                    record.quiet_s = float(entry["quiet_s"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{folder / FOUND}, line {number} is damaged ({error!r}): remove {folder}, and the film "
                    "is looked through again"
                ) from error
        record._kept_lines = lines[:kept]
        if tracks or views:
            record.holds_forgotten = True
            record._kept_lines, _ = _without(lines[:kept], tracks, views, record.next_track)
            record.visits = {
                visit.track: visit
                for visit in (visit.without(views) for visit in record.visits.values())
                if visit.views and visit.track not in tracks
            }
        return record

    _kept_lines: list[bytes] = field(default_factory=list, repr=False)

    def begin(self, about: dict[str, Any]) -> None:
        """Goes on, or begins, to look through the film; what does not count is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.about:
            self._kept_lines = [json.dumps({"format": FORMAT, "about": about}).encode()]
            self.about = about
        if not self.about.get("is_live"):  # gaps after the last quiet moment are met again
            self.gaps = [gap for gap in self.gaps if gap.end_s <= self.quiet_s]
            self._kept_lines = [line for line in self._kept_lines if not self._is_later_gap(line)]
        _write_lines(self.folder, self._kept_lines)
        self.end = None
        wanted = {
            name for visit in self.visits.values() for view in visit.views for name in (view.name, view.frame)
        }
        for file in self.folder.glob("*.jpg"):
            if file.name not in wanted:
                file.unlink()

    def add(self, visits: Sequence[Visit]) -> None:
        """Writes finished visits: their pictures first."""
        for visit in visits:
            views = []
            for number, view in enumerate(visit.views, start=1):
                name = f"{self.next_track}-{number}.jpg"
                frame = f"{self.next_track}-{number}.frame.jpg"
                for file, content in ((name, view.crop), (frame, view.frame)):
                    with explained_full_disk(self.folder / file):
                        (self.folder / file).write_bytes(content)
                box = _sized(view.box)
                views.append(KeptView(name, frame, round(view.time_s, 3), box, view.size))
            kept = KeptVisit(
                self.next_track,
                round(visit.start_s, 3),
                round(visit.end_s, 3),
                tuple(views),
                tuple((round(time_s, 3), _sized(box)) for time_s, box in visit.boxes),
            )
            self._append({"visit": kept.to_json()})
            self.visits[kept.track] = kept
            self.next_track += 1

    def note(self, gap: Gap) -> None:
        self._append({"gap": gap.to_json()})
        self.gaps.append(gap)

    def mark_quiet(self, time_s: float) -> None:
        """Nobody is in sight, so that all until here counts."""
        self._append({"quiet_s": round(time_s, 3)})
        self.quiet_s = time_s

    def mark_end(self, end_s: float, state: list[int] | None, content: str | None = None) -> None:
        """The film was looked through, as it was in this state and with this content."""
        self.end = {"end_s": round(end_s, 3), "state": state, "content": content}
        self._append({"end": self.end})

    def reopen(self) -> list[KeptVisit]:
        """Goes back to the last quiet moment, as of a film that has grown; returns the visits that go."""
        after = [visit for visit in self.visits.values() if visit.end_s > self.quiet_s]
        if after:
            self.forget([visit.track for visit in after])
        self.end = None
        return after

    def forget(self, tracks: Sequence[int] = (), views: Sequence[str] = ()) -> None:
        """Removes visits, and views by their names, for good: pictures, times and boxes.

        What is left of a visit without views goes as well. A kill in between leaves a line that says what is
        forgotten; the next call, be it without arguments, ends it.
        """
        if tracks or views:
            self._append({"forgotten": list(tracks), "views": list(views)})
        with self._alone():
            now = FilmRecord.read(self.folder, self.camera)  # which another process may have added to
            lines = _whole_lines(self.folder)
            entries = [entry for entry in map(json.loads, lines) if "forgotten" in entry]
            all_tracks = {track for entry in entries for track in entry["forgotten"]}
            all_views = {name for entry in entries for name in entry.get("views", ())}
            left, pictures = _without(lines, all_tracks, all_views, now.next_track)
            for name in pictures:
                (self.folder / name).unlink(missing_ok=True)
            _write_lines(self.folder, left)
        self.visits, self.next_track, self._kept_lines = now.visits, now.next_track, now._kept_lines
        self.holds_forgotten = False

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def moments(self) -> list[tuple[str, KeptView, Moment]]:
        """Id, view and moment of each picture, in the order of the visits."""
        found = []
        for visit in self.visits.values():
            moment = Moment(
                self.camera,
                visit.start_s,
                visit.end_s,
                visit.track,
                visit.views[0].box,
                visit.views[0].seen_s,
                self.about.get("film"),
                self.about.get("started_at"),
            )
            for view in visit.views:
                own = replace(moment, box=view.box, seen_s=view.seen_s, frame=view.frame, size=view.size)
                found.append((f"{self.camera}/{view.name}", view, own))
        return found

    @property
    def is_blank(self) -> bool:
        """Nothing was seen by it: neither people nor time that passed."""
        length_s = 0.0 if self.end is None else self.end["end_s"]
        return not (self.visits or self.gaps or self.quiet_s or length_s)

    @property
    def is_whole_film(self) -> bool:
        """It says how long it is, as no camera's stream does, and was looked through to its end."""
        length_s, seen_s = self.about.get("duration_s"), 0.0 if self.end is None else self.end["end_s"]
        return bool(length_s) and seen_s > length_s - LONGEST_SILENCE_S

    @property
    def started_at(self) -> datetime | None:
        text = self.about.get("started_at")
        return None if text is None else datetime.fromisoformat(text)

    def _is_later_gap(self, line: bytes) -> bool:
        gap = json.loads(line).get("gap")
        return gap is not None and gap["end_s"] > self.quiet_s

    def _append(self, entry: dict[str, Any]) -> None:
        path = self.folder / FOUND
        with self._alone(), explained_full_disk(path), path.open("ab+") as stream:
            stream.seek(max(0, stream.tell() - 1))
            if stream.read() != b"\n":  # a kill or a full disk has cut a line off
                stream.truncate(path.read_bytes().rfind(b"\n") + 1)
            stream.write(json.dumps(entry).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _alone(self) -> AbstractContextManager[None]:
        return held_alone(self.folder / LOCK, wait=60)  # a stream is added to while others forget


def _whole_lines(folder: Path) -> list[bytes]:
    """Of a record's file; what follows the last end of a line was cut off by a kill."""
    return (folder / FOUND).read_bytes().split(b"\n")[:-1]


def _write_lines(folder: Path, lines: Sequence[bytes]) -> None:
    with replacing(folder / FOUND, durable=True) as unfinished:
        unfinished.write_bytes(b"".join(line + b"\n" for line in lines))


def _without(
    lines: Sequence[bytes], tracks: Collection[int], views: Collection[str], next_track: int
) -> tuple[list[bytes], list[str]]:
    """A record's lines without what is forgotten, and the names of its pictures.

    Args:
        next_track: kept in them, so that no later visit gets a forgotten one's number.
    """
    left, pictures = [], []
    for line in lines:
        entry = json.loads(line)
        if "forgotten" in entry:
            continue
        if "about" in entry:
            line = json.dumps(entry | {"next_track": next_track}).encode()
        if "visit" in entry:
            visit = KeptVisit.from_json(entry["visit"])
            kept = visit.without(views if visit.track not in tracks else [view.name for view in visit.views])
            if kept != visit:
                gone = [view for view in visit.views if view not in kept.views]
                pictures += [name for view in gone for name in (view.name, view.frame)]
                line = json.dumps({"visit": kept.to_json()}).encode()
            if not kept.views:
                continue
        left.append(line)
    return left, pictures


def _sized(box: Box) -> Box:
    """Left, top, width and height of left, top, right and bottom."""
    left, top, right, bottom = (round(float(edge), 1) for edge in box)
    return left, top, round(right - left, 1), round(bottom - top, 1)


def boxes_between(
    gallery: Path, moment: Moment, start_s: float = -math.inf, end_s: float = math.inf
) -> list[tuple[float, Box]]:
    """When the person of a moment was where, from one time of the film to another.

    Returns:
        (time_s, (left, top, width, height)) in order, in pixels of the whole frame; in between, on a line.
        Empty where nothing is known: of records of early versions, and before and after the visit.
    """
    record = FilmRecord.read(gallery / FOOTAGE / moment.camera, moment.camera)
    visit = record.visits.get(moment.track)
    if visit is None or not visit.boxes:
        return []
    known = list(visit.boxes)
    start_s, end_s = max(start_s, known[0][0]), min(end_s, known[-1][0])
    if start_s > end_s:
        return []

    def at(time_s: float) -> tuple[float, Box]:
        after = next(number for number, (known_s, _) in enumerate(known) if known_s >= time_s)
        return time_s, box_at(time_s, known[max(0, after - 1)], known[after])

    within = [pair for pair in known if start_s < pair[0] < end_s]
    return [at(start_s), *within, at(end_s)] if start_s < end_s else [at(start_s)]


def records_of(gallery: Path) -> list[FilmRecord]:
    """The records of all films of a gallery, by the cameras' names."""
    root = gallery / FOOTAGE
    folders = sorted(path.parent for path in root.rglob(FOUND))
    return [FilmRecord.read(folder, folder.relative_to(root).as_posix()) for folder in folders]


def visits_of(gallery: Path) -> dict[str, Any]:
    """What `tpas footage list` says: every visit that is in the gallery's records, and every film.

    Raises:
        ValueError: there is no footage in it.
    """
    records = records_of(gallery)
    if not records:
        raise ValueError(f"{gallery} holds no footage, as `tpas footage build` makes it")
    visits = []
    for record in records:
        firsts: dict[int, Any] = {}
        for _, _, moment in record.moments():
            firsts.setdefault(moment.track, moment)
        visits += [moment.to_json() for moment in firsts.values()]
    films = [
        {
            "camera": record.camera,
            "film": record.about.get("film"),
            "started_at": record.about.get("started_at"),
            "end_s": None if record.end is None else record.end["end_s"],
            "visits": len(record.visits),
            "gaps": [gap.to_json() for gap in record.gaps],
        }
        for record in records
    ]
    visits.sort(key=lambda visit: (visit["camera"], visit["start_s"], visit["track"]))
    return {"path": str(gallery), "films": films, "visits": visits}
