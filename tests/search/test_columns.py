"""What is kept in columns says what the records say, and is made again from them where it is not theirs."""

import random
import time
from dataclasses import replace
from datetime import datetime
from fnmatch import fnmatchcase

import pytest
import torch

from tpas.data.moments import Moment
from tpas.search.columns import COLUMNS, Columns, read_columns, write_columns
from tpas.search.gallery import Gallery
from tpas.search.manifest import WAIT, GallerySettings, builder_lock, new_manifest, read_manifest
from tpas.search.shards import ShardRow, list_shards, shard_name, write_shard
from tpas.search.stored_gallery import StoredGallery, delete_images

SETTINGS = GallerySettings("model", None, None)
BEGINNINGS = (
    None,
    "2026-11-02T23:30:00+00:00",  # the night goes on after midnight
    "2026-11-03T00:00:00+05:30",
    "2026-11-02T20:00:00.250000-03:00",
)
CAMERAS = ("door", "yard/east", "yard/west", "yard2", "[1]", "Straße")
TIMES = [
    None,
    0,
    1799.5,
    3600.0,
    *(
        datetime.fromisoformat(f"2026-11-0{day}T{clock}:00+00:00")
        for day in (2, 3)
        for clock in ("00:00", "23:45")
    ),
    datetime.fromisoformat("2026-11-02T20:00:07.25-03:00"),  # to the moment
]


def image_rows(prefix: str, count: int) -> list[ShardRow]:
    """Images of every kind: of no film; of films that do and do not say when they began."""
    draw = random.Random(prefix)
    rows = []
    for number in range(count):
        start = round(draw.uniform(0, 7200), 3)
        moment = Moment(
            draw.choice(CAMERAS),
            start,
            start + draw.choice([0.0, 7.0, 3000.0]),
            draw.randint(1, 4),
            (0, 0, 1, 1),
            start,
            started_at=draw.choice(BEGINNINGS),
        )
        kept = None if number % 5 == 0 else moment
        rows.append(ShardRow(f"{prefix}/ä{number}", torch.ones(4) / 2, None, None, None, None, moment=kept))
    return rows


def append_shards(directory, prefix: str, shards: int = 3) -> None:
    (directory / "shards").mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(directory) or new_manifest(SETTINGS)
    names = []
    for number in range(shards):
        rows = image_rows(f"{prefix}{number}", 30)
        names.append(shard_name(manifest["next_shard"] + number, [row.id for row in rows]))
        write_shard(directory, names[-1], SETTINGS, rows, {})
    list_shards(directory, manifest, names)


@pytest.fixture
def directory(tmp_path):
    append_shards(tmp_path, "a")
    return tmp_path


def moments_of(stored: StoredGallery) -> list[Moment | None]:
    """From the records, one by one."""
    return [stored.moment(row) for row in range(len(stored))]


def check(directory) -> None:
    """The columns say what the records say, and are kept."""
    stored = StoredGallery(directory)
    assert list(stored.ids()) == [record["id"] for record in stored.records()]
    moments, firsts = moments_of(stored), {}
    visits = [row if of is None else firsts.setdefault(of.visit, row) for row, of in enumerate(moments)]
    assert stored.columns.visits.tolist() == visits
    assert set(stored.columns.cameras) == {of.camera for of in moments if of is not None}
    assert read_columns(directory)[1] == stored._sources


def is_of(moment: Moment, camera: str | None) -> bool:
    if camera is None:
        return True
    wanted = camera.rstrip("/")
    return fnmatchcase(moment.camera, wanted) or moment.camera.startswith(f"{wanted}/")


def test_rows_of_a_camera_and_a_time_are_those_of_the_moments(directory):
    gallery = Gallery.open(directory)
    moments = moments_of(gallery.stored)
    found = 0
    for camera in (None, "door", "yard", "yard/", "yard*", "*[tß]*", "[[]1]"):
        for since in TIMES:
            for until in TIMES:
                rows = [
                    row
                    for row, of in enumerate(moments)
                    if of is not None
                    and (
                        camera is None
                        or fnmatchcase(of.camera, camera.rstrip("/"))
                        or of.camera.startswith(f"{camera.rstrip('/')}/")
                    )
                    and of.lasts_into(since, until)
                ]
                assert gallery.rows_of_moments(camera, since, until).tolist() == rows
                found += 0 < len(rows) < len(moments) // 2
    assert found > 100
    with pytest.raises(ValueError, match="no camera 'gate'; it has Straße, \\[1\\], door"):
        gallery.rows_of_moments("gate")


def test_columns_follow_what_is_appended_and_deleted(directory):
    check(directory)
    append_shards(directory, "b", 2)
    check(directory)
    delete_images(directory, [f"a1/ä{number}" for number in range(30)] + ["b0/ä1"])
    content = (directory / COLUMNS).read_bytes()
    assert b"a1/" not in content  # nothing is left of what is deleted
    check(directory)
    assert (directory / COLUMNS).read_bytes() == content


@pytest.mark.parametrize(
    "harm", ["missing", "cut", "altered", "of other shards", "no such camera", "no offset", "within a letter"]
)
def test_columns_that_are_not_the_records_are_made_again(directory, harm):
    check(directory)
    file = directory / COLUMNS
    columns, sources = read_columns(directory)
    content = bytearray(file.read_bytes())
    if harm == "missing":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(content[:-9])
    elif harm == "altered":
        content[-3] ^= 1
        file.write_bytes(content)
    elif harm == "of other shards":
        other = Columns.of_records([row.record for row in image_rows("c", 90)])
        write_columns(directory, other, [(f"0{source}", rows) for source, rows in sources])
    elif harm == "no such camera":  # with a right checksum, as somebody could write it
        write_columns(directory, replace(columns, camera=columns.camera + 1), sources)
    elif harm == "no offset":
        write_columns(directory, replace(columns, beginnings=["2026-11-26T08:00:00"] * 9), sources)
    else:
        ends = columns.id_ends.copy()
        ends[3] = ends[2] + 4  # of "a0/ä3"
        write_columns(directory, replace(columns, id_ends=ends), sources)
    check(directory)


def test_a_moment_begins_at_a_known_time_or_at_none(directory):
    of = next(
        of for of in moments_of(StoredGallery(directory)) if of is not None and of.started_at is not None
    )
    record = of.to_record()
    assert Moment.from_record(record) == of
    with pytest.raises(ValueError, match="has an offset from UTC, got 2026-11-26T08:00$"):
        Moment.from_record(record | {"started_at": "2026-11-26T08:00"})


def test_a_build_that_runs_meanwhile_is_not_disturbed(directory):
    with builder_lock(directory):
        began = time.monotonic()
        assert len(Gallery.open(directory).rows_of_moments("door"))
        assert time.monotonic() - began < WAIT  # nor waited for
    assert not (directory / COLUMNS).exists()
