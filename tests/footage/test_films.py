"""Films are opened whatever they are, with their own times; what is wrong with them is named."""

import re
import socket
import struct
import time
import wave

import numpy as np
import pytest
from PIL import Image
from tiny_films import write_film

from tpas.data.moments import clock
from tpas.footage.films import open_film, read_clock, time_in_name
from tpas.footage.sources import find_films, holds_films


def times_of(path, **settings):
    with open_film(path, **settings) as film:
        return [round(frame.time_s, 3) for frame in film], film


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "ts"])
def test_times_are_the_films_own_in_every_container(tmp_path, kind):
    times, film = times_of(write_film(tmp_path / f"a.{kind}", [number / 25 for number in range(20)]))
    assert times == pytest.approx([number / 25 for number in range(20)], abs=0.002)
    assert not film.gaps


def test_a_variable_rate_is_kept_and_a_silence_is_a_named_gap(tmp_path):
    given = [0.0, 0.04, 0.2, 0.21, 1.0, 6.5, 6.6]
    times, film = times_of(write_film(tmp_path / "a.mkv", given))
    assert times == pytest.approx(given, abs=0.002)
    (gap,) = film.gaps
    assert (gap.start_s, gap.end_s, gap.reason) == (
        pytest.approx(1.0),
        pytest.approx(6.5),
        "no frames for 5.5 s",
    )


def test_a_clock_that_goes_back_is_a_named_gap_and_time_goes_on(tmp_path):
    first = write_film(tmp_path / "a.ts", [5 + number / 25 for number in range(100)])
    second = write_film(tmp_path / "b.ts", [number / 25 for number in range(50)])
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    times, film = times_of(both)
    assert len(times) >= 148
    assert times == sorted(set(times))
    assert times[-1] == pytest.approx(6.0, abs=0.3)
    assert any("clock goes back" in gap.reason for gap in film.gaps)


def test_of_several_streams_the_largest(tmp_path):
    write_film(tmp_path / "a.mkv", [0.0, 0.1], size=(32, 32), more_streams=[(128, 96)])
    with open_film(tmp_path / "a.mkv") as film:
        assert {(frame.width, frame.height) for frame in film} == {(128, 96)}


def test_a_turned_film_is_upright(tmp_path):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32] = 255  # its left half is bright
    path = write_film(tmp_path / "a.mp4", [0.0, 0.1], [image, image])
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # where the matrix of a track's header begins
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)  # to the right
    content[place : place + 36] = quarter
    path.write_bytes(content)
    with open_film(path) as film:
        frame = next(iter(film))
        shown = frame.image()
        small = frame.image(32)
    assert (frame.width, frame.height) == (48, 64)
    assert shown.shape == (64, 48, 3)
    assert small.shape == (32, 24, 3)
    assert shown[:30].mean() > 200  # now its upper half
    assert shown[34:].mean() < 50


def test_where_a_film_is_gone_on_with(tmp_path):
    path = write_film(tmp_path / "a.mp4", [number / 10 for number in range(100)])
    times, _ = times_of(path, from_s=5.0)
    assert times == pytest.approx([number / 10 for number in range(50, 100)], abs=0.002)


def test_the_wall_clock_is_that_of_the_metadata_unless_one_is_given(tmp_path):
    path = write_film(tmp_path / "a.mkv", [0.0, 0.1], metadata={"creation_time": "2026-11-26T08:00:00Z"})
    with open_film(path) as film:
        assert film.started_at.isoformat() == "2026-11-26T08:00:00+00:00"
    given = time_in_name("20260101_120000Z")
    with open_film(path, started_at=given) as film:
        assert film.started_at == given


def test_a_film_that_was_cut_off_is_read_to_its_end_with_a_gap(tmp_path):
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(200)]
    whole = write_film(tmp_path / "a.mkv", [number / 25 for number in range(200)], images).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 3])
    times, film = times_of(tmp_path / "cut.mkv")
    assert 20 < len(times) < 180
    assert "cut off" in film.gaps[-1].reason
    assert film.gaps[-1].end_s == pytest.approx(8.0, abs=0.2)


def broken(tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    if kind == "cut off":
        path.write_bytes(write_film(tmp_path / "a.mp4", [0.0, 0.1]).read_bytes()[:200])
    elif kind == "a text":
        path.write_text("no film")
    elif kind == "empty":
        path.touch()
    elif kind == "sound alone":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(1600))
    elif kind == "a foreign codec":
        content = write_film(tmp_path / "a.avi", [0.0, 0.1]).read_bytes()
        path.write_bytes(content.replace(b"FMP4", b"ZZQX").replace(b"fmp4", b"zzqx"))
    elif kind == "no frames":
        content = write_film(tmp_path / "a.avi", [0.0, 0.1]).read_bytes()
        path.write_bytes(content[: content.index(b"movi") + 4])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut off", "no film that can be read"),
        ("a text", "no film that can be read"),
        ("empty", "no film that can be read"),
        ("sound alone", "no video in it, only audio"),
        ("a foreign codec", "a codec that ffmpeg here has not"),
        ("no frames", "no frame that can be read|no video in it"),
    ],
)
def test_what_is_no_film_is_refused_by_name(tmp_path, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=message) as error:
        times_of(path)
    assert str(path) in str(error.value)
    with pytest.raises(FileNotFoundError, match="no such film"):
        open_film(tmp_path / "none.mp4")


def test_an_address_that_never_answers_ends_in_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="does not answer within 0.5 s") as error:
            open_film(f"rtsp://user:secret@127.0.0.1:{silent.getsockname()[1]}/cam", timeout_s=0.5)
    assert time.monotonic() - began < 5
    assert "secret" not in str(error.value)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        open_film("tcp://127.0.0.1:9", timeout_s=0.5)


def test_images_with_times_in_their_names_are_a_film(tmp_path):
    for second in (5, 6, 7, 30):
        Image.new("RGB", (20, 10)).save(tmp_path / f"cam_2026-11-26_12-30-{second:02d}.500.png")
    times, film = times_of(tmp_path)
    assert times == [0.0, 1.0, 2.0, 25.0]
    assert film.started_at.isoformat()[:23] == "2026-11-26T12:30:05.500"
    assert [gap.reason for gap in film.gaps] == ["no images for 23.0 s"]
    with open_film(tmp_path, from_s=20.0) as later:
        assert [frame.time_s for frame in later] == [25.0]
        assert [gap.start_s for gap in later.gaps] == [2.0]
    Image.new("RGB", (20, 10)).save(tmp_path / "holiday.png")
    with pytest.raises(ValueError, match=re.escape("holiday.png: its name has no time")):
        open_film(tmp_path)


def test_times_are_read_and_shown_as_players_do():
    assert [read_clock(text) for text in ("72.4", "1:12.4", "00:01:12.4")] == [72.4] * 3
    assert clock(3672.45) == "01:01:12.4"
    with pytest.raises(ValueError, match="'tomorrow' is no time of a film"):
        read_clock("tomorrow")
    assert time_in_name("cam1-1795696205.jpg").timestamp() == 1795696205
    assert time_in_name("20261126T123005Z.jpg").isoformat() == "2026-11-26T12:30:05+00:00"
    assert time_in_name("0001.jpg") is None


def test_films_of_a_folder_are_cameras_by_their_paths(tmp_path):
    (tmp_path / "hall").mkdir()
    for name in ("hall/1.mp4", "yard.MKV"):
        (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    assert [source.camera for source in find_films(tmp_path)] == ["hall/1.mp4", "yard.MKV"]
    assert [source.camera for source in find_films(tmp_path, "house")] == [
        "house/hall/1.mp4",
        "house/yard.MKV",
    ]
    assert [source.camera for source in find_films("rtsp://me:secret@host:554/cam1")] == ["host_554_cam1"]
    assert holds_films(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    assert not holds_films(tmp_path)  # a folder of images, as ever
    with pytest.raises(ValueError, match="a camera's name"):
        find_films(tmp_path, "../other")
