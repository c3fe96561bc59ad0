"""Forgets visits by their age: crops, whole frames, thumbnails, embeddings and index entries."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from .records import FilmRecord, KeptVisit, records_of
from .sources import plain_camera

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def read_age(text: str) -> timedelta:
    """The age that "30d", "12h" or "2w" says; ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip().lower())
    if found is None:
        raise ValueError(f"{text!r} is no age, such as 30d, 12h or 2w")
    return timedelta(**{UNITS[found[2]]: float(found[1])})


def older_visits(gallery: Path, age: timedelta, now: datetime) -> list[tuple[FilmRecord, list[KeptVisit]]]:
    """By film the visits that ended longer ago; of a film without a wall clock, that were found longer ago.

    With films of whose visits none is that old, but some that were forgotten are still in the record.

    Raises:
        ValueError: there is no footage in the gallery.
    """
    records = records_of(gallery)
    if not records:
        raise ValueError(f"{gallery} holds no footage: --older_than is for visits that films have shown")
    older = [
        (record, [visit for visit in record.visits.values() if now - _time_of(record, visit) > age])
        for record in records
    ]
    return [(record, visits) for record, visits in older if visits or record.holds_forgotten]


def forget(gallery: Path, older: list[tuple[FilmRecord, list[KeptVisit]]]) -> list[str]:
    """Removes visits and all that was made of them; returns the ids of their images. The films stay."""
    from ..search.manifest import MANIFEST, builder_lock
    from ..search.stored_gallery import StoredGallery, delete_alone

    ids = [f"{record.camera}/{view.name}" for record, visits in older for v in visits for view in v.views]
    with builder_lock(gallery):  # over all of it, or a build in between would encode them again
        if (gallery / MANIFEST).exists():
            tracks = {record.camera: {visit.track for visit in visits} for record, visits in older}
            columns = StoredGallery(gallery).columns
            rows = columns.of_cameras(lambda name: plain_camera(name) in tracks)
            cameras = [plain_camera(columns.cameras[place]) for place in columns.camera[rows]]
            are_gone = [
                track in tracks[name]
                for name, track in zip(cameras, columns.track[rows].tolist(), strict=True)
            ]
            if gone := [*columns.ids(rows[are_gone])]:
                delete_alone(gallery, gone)
        for record, visits in older:
            record.forget([visit.track for visit in visits])
    return ids


def forget_images(gallery: Path, ids: Sequence[str]) -> None:
    """Removes single images and what was computed from them, and of those cut from films the files as well.

    A visit goes with its last image. What a killed call left, the same call removes.

    Raises:
        KeyError: an image is not there; then none is removed.
    """
    from ..search.manifest import builder_lock
    from ..search.stored_gallery import StoredGallery, delete_alone

    wanted = {plain_camera(name) for name in ids}
    with builder_lock(gallery):
        records = records_of(gallery)
        cut = {name for record in records for name, _, _ in record.moments()}
        stored = StoredGallery(gallery)
        there = {plain_camera(name): name for name in stored.ids()}
        known = cut | there.keys()
        stored.rows_of([name for name in ids if plain_camera(name) not in known])  # raises where there is one
        if gone := [there[name] for name in wanted if name in there]:
            delete_alone(gallery, gone)
        for record in records:
            if own := [view.name for name, view, _ in record.moments() if name in wanted]:
                record.forget(views=own)


def _time_of(record: FilmRecord, visit: KeptVisit) -> datetime:
    if record.started_at is not None:
        return record.started_at + timedelta(seconds=visit.end_s)
    found_at = (record.folder / visit.views[0].name).stat().st_mtime
    return datetime.fromtimestamp(found_at).astimezone()
