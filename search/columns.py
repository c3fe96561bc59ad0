"""What filters ask of every image of a gallery, in columns: a million records would take a minute to read.

They are derived from the records, which stay what counts: `columns.safetensors` in the gallery's directory
says which shards it was made from, and is made again where it is missing, older or damaged.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..data.moments import seconds_of_film
from ..data.whole_files import replacing

COLUMNS = "columns.safetensors"
NONE = -1  # in the place of a number: not known, or of no film
NEVER = -(2**63)  # in that of a time
IDS_AT_ONCE = 65_536

Source = tuple[str, int]  # what stands for a shard's records, and their number
Value = TypeVar("Value")


@dataclass(frozen=True)
class Columns:
    """Of each row of a gallery, (G,), what filters look at.

    Attributes:
        id_bytes: (B,) uint8, all ids in UTF-8, one after the other.
        id_ends: (G,) int64, where each one ends in it.
        changed_s: int64, when the file was last changed, in whole seconds since 1970; `NEVER`: not known.
        camera: int32, the place of its name in `cameras`; `NONE` of what is of no film, as in the others.
        start_s, end_s: float64, of `Moment`.
        track: int64, of `Moment`.
        began: int32, the place of the film's `Moment.started_at` in `beginnings`; `NONE` also where that is
            not known.
        cameras, beginnings: each once, in the order of their first rows.
    """

    id_bytes: np.ndarray
    id_ends: np.ndarray
    changed_s: np.ndarray
    camera: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    track: np.ndarray
    began: np.ndarray
    cameras: tuple[str, ...]
    beginnings: tuple[str, ...]

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]]) -> "Columns":
        """Of records that were checked."""
        ids = [record["id"].encode() for record in records]
        moments = [record.get("moment") or {} for record in records]
        camera, cameras = coded([moment.get("camera") for moment in moments])
        began, beginnings = coded([moment.get("started_at") for moment in moments])
        return cls(
            np.array(bytearray(b"".join(ids)), np.uint8),
            np.cumsum([len(own) for own in ids], dtype=np.int64),
            np.array([_changed(record.get("state")) for record in records], np.int64),
            camera,
            np.array([moment.get("start_s", NONE) for moment in moments], np.float64),
            np.array([moment.get("end_s", NONE) for moment in moments], np.float64),
            np.array([moment.get("track", NONE) for moment in moments], np.int64),
            began,
            cameras,
            beginnings,
        )

    @classmethod
    def joined(cls, parts: Sequence["Columns"]) -> "Columns":
        """The rows of all parts, one part after the other."""
        if not parts:
            return cls.of_records([])
        filled = np.cumsum([0, *(len(part.id_bytes) for part in parts)])
        camera, cameras = _joined_codes([(part.camera, part.cameras) for part in parts])
        began, beginnings = _joined_codes([(part.began, part.beginnings) for part in parts])
        changed = {"camera": camera, "began": began}
        changed["id_ends"] = np.concatenate(
            [part.id_ends + before for part, before in zip(parts, filled, strict=False)]
        )
        alike = TYPES.keys() - changed
        alike = {name: np.concatenate([getattr(part, name) for part in parts]) for name in alike}
        return cls(**alike, **changed, cameras=cameras, beginnings=beginnings)

    def part(self, first: int, last: int) -> "Columns":
        """The rows from `first` to before `last`, without a copy."""
        starts = [int(self.id_ends[row - 1]) if row else 0 for row in (first, last)]
        arrays = {name: array[first:last] for name, array in self._arrays().items()}
        arrays["id_bytes"] = self.id_bytes[starts[0] : starts[1]]
        arrays["id_ends"] = arrays["id_ends"] - starts[0]
        return Columns(**arrays, cameras=self.cameras, beginnings=self.beginnings)

    def __len__(self) -> int:
        return len(self.id_ends)

    def ids(self, rows: np.ndarray | None = None) -> Iterator[str]:
        """The ids of these rows (n,), or of all, in their order."""
        starts = np.concatenate([[0], self.id_ends[:-1]])
        for first in range(0, len(self) if rows is None else len(rows), IDS_AT_ONCE):
            own = slice(first, first + IDS_AT_ONCE) if rows is None else rows[first : first + IDS_AT_ONCE]
            bounds = zip(starts[own].tolist(), self.id_ends[own].tolist(), strict=True)
            yield from [self.id_bytes[start:end].tobytes().decode() for start, end in bounds]

    @cached_property
    def visits(self) -> np.ndarray:
        """(G,) int64, of each row the first row of the same visit, or itself."""
        rows = np.arange(len(self))
        of_film = np.flatnonzero(self.camera >= 0)
        order = of_film[np.lexsort((self.track[of_film], self.camera[of_film]))]  # stable, so rows ascend
        is_first = np.ones(len(order), bool)
        is_first[1:] = np.diff(self.camera[order]) != 0
        is_first[1:] |= self.track[order[1:]] != self.track[order[:-1]]
        rows[order] = order[is_first][np.cumsum(is_first) - 1]
        return rows

    def of_cameras(self, wanted: Callable[[str], bool]) -> np.ndarray:
        """The rows (n,) of films of the cameras whose name is wanted."""
        chosen = np.array([*map(wanted, self.cameras), False])  # the last, `NONE`
        return np.flatnonzero(chosen[self.camera])

    def lasting_into(
        self, rows: np.ndarray, since: float | datetime | None, until: float | datetime | None
    ) -> np.ndarray:
        """Those of the rows (n,) of films whose visit touches a time, as `Moment.lasts_into` says."""
        if isinstance(since, datetime) or isinstance(until, datetime):
            rows = rows[self.began[rows] >= 0]
        after, before = self._of_film(rows, since, -np.inf), self._of_film(rows, until, np.inf)
        return rows[(self.end_s[rows] >= after) & (self.start_s[rows] <= before)]

    def _of_film(self, rows: np.ndarray, time: float | datetime | None, otherwise: float) -> Any:
        """A time in seconds since the beginning of each row's film, which is known where it has to be."""
        if not isinstance(time, datetime):
            return otherwise if time is None else time
        began = self.began[rows]
        seconds = np.full(len(self.beginnings), np.nan)
        for place in np.flatnonzero(np.bincount(began, minlength=len(seconds))):
            seconds[place] = seconds_of_film(time, self.beginnings[place])
        return seconds[began]

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in TYPES}

    def _is_sound(self) -> bool:
        """Whether these are columns at all: the file may come from anybody."""
        shapes = {array.shape for name, array in self._arrays().items() if name != "id_bytes"}
        typed = all(array.dtype == TYPES[name] for name, array in self._arrays().items())
        if not typed or shapes != {(len(self),)} or self.id_bytes.ndim != 1:
            return False
        ends = np.concatenate([[0], self.id_ends])
        if (np.diff(ends) < 0).any() or ends[-1] != len(self.id_bytes):
            return False
        self.id_bytes.tobytes().decode()
        begins = ends[ends < len(self.id_bytes)]
        if ((self.id_bytes[begins] & 0xC0) == 0x80).any():  # within a character
            return False
        return (
            all(datetime.fromisoformat(beginning).tzinfo for beginning in self.beginnings)
            and all(isinstance(name, str) for name in self.cameras)
            and _are_within(self.camera, self.cameras)
            and _are_within(self.began, self.beginnings)
            and bool(np.isfinite(self.start_s).all() and np.isfinite(self.end_s).all())
        )


TYPES = {
    "id_bytes": np.uint8,
    "id_ends": np.int64,
    "changed_s": np.int64,
    "camera": np.int32,
    "start_s": np.float64,
    "end_s": np.float64,
    "track": np.int64,
    "began": np.int32,
}


def write_columns(directory: Path, columns: Columns, sources: Sequence[Source]) -> None:
    """Keeps columns in a gallery's directory.

    Args:
        sources: of the rows, in their order.
    """
    about, arrays = [sources, columns.cameras, columns.beginnings], columns._arrays()
    metadata = {"about": json.dumps([_checksum(about, arrays), *about])}
    with replacing(directory / COLUMNS) as unfinished:
        save_file(arrays, unfinished, metadata)


def read_columns(directory: Path) -> tuple[Columns, list[Source]] | None:
    """The columns that are kept there, and their sources; None where there are none, or damaged ones."""
    try:
        with safe_open(directory / COLUMNS, "np") as file:
            checksum, *about = json.loads(file.metadata()["about"])
            arrays = {name: file.get_tensor(name) for name in TYPES}
        if checksum != _checksum(about, arrays):
            return None
        sources, cameras, beginnings = about
        columns = Columns(**arrays, cameras=tuple(cameras), beginnings=tuple(beginnings))
        sources = [(str(source), int(rows)) for source, rows in sources]
        if not columns._is_sound() or sum(rows for _, rows in sources) != len(columns):
            return None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return columns, sources


def coded(values: Sequence[Value | None]) -> tuple[np.ndarray, tuple[Value, ...]]:
    """(n,) int32 places of the values, `NONE` for None, and each value once, in the order of its first."""
    places: dict[Value, int] = {}
    codes = [NONE if value is None else places.setdefault(value, len(places)) for value in values]
    return np.array(codes, np.int32), tuple(places)


def _joined_codes(parts: Sequence[tuple[np.ndarray, tuple[str, ...]]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """As `coded` of all parts' values; a value that no row has any more is left out."""
    places: dict[str, int] = {}
    codes = []
    for own, values in parts:
        used, first = np.unique(own, return_index=True)
        new = np.full(len(values) + 1, NONE, np.int32)  # the last, `NONE`, stays
        for place in used[first.argsort()].tolist():
            if place != NONE:
                new[place] = places.setdefault(values[place], len(places))
        codes.append(new[own])
    return np.concatenate(codes), tuple(places)


def _are_within(codes: np.ndarray, values: Collection[str]) -> bool:
    return bool(((codes >= NONE) & (codes < len(values))).all())


def _changed(state: Any) -> int:
    """Seconds of a file's last change in its `file_state`, which may say anything in a gallery of anybody."""
    try:
        seconds = int(state[1] // 10**9)
    except (IndexError, TypeError, ValueError, OverflowError, KeyError):
        return NEVER
    return seconds if abs(seconds) < 2**63 else NEVER


def _checksum(about: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> str:
    checksum = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    for name in TYPES:
        checksum.update(np.ascontiguousarray(arrays[name]).data)
    return checksum.hexdigest()
