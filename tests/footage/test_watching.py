"""What is watched is kept: through a stream that drops, a signal, a kill, and as a folder's films come."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny_films import TRUTH, write_boxes, write_walk

from tpas.footage.clips import cut_clip
from tpas.footage.intake import build_footage
from tpas.footage.records import FOUND, records_of, visits_of
from tpas.footage.rules import FootageRules
from tpas.footage.sources import find_films
from tpas.footage.watching import watch
from tpas.models.loading import load_model
from tpas.search.gallery import Gallery
from tpas.search.manifest import FOOTAGE


def three_visits(folder):
    """Boxes of a film's three visits, and the rules by which they are found."""
    file = folder / "boxes.jsonl"
    return write_boxes(file), FootageRules(detector=f"boxes:{file}")


def spans(gallery):
    return [(visit["start_s"], visit["end_s"]) for visit in visits_of(gallery)["visits"]]


def found_in(gallery):
    """All that was written of its films until now."""
    return "".join(file.read_text() for file in (gallery / FOOTAGE).rglob(FOUND))


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def camera_that(sends):
    """The address of a camera, which does so with each connection until it returns True."""
    with socket.socket() as camera:
        camera.bind(("127.0.0.1", 0))
        camera.listen()

        def send():
            is_last = False
            while not is_last:
                connection, _ = camera.accept()
                with connection:
                    is_last = sends(connection)

        sender = threading.Thread(target=send)
        sender.start()
        yield f"tcp://me:secret@127.0.0.1:{camera.getsockname()[1]}"
        sender.join()


def test_a_stream_that_drops_is_watched_on(model, processor, tmp_path):
    """A camera that sends a film, hangs up, and sends it again."""
    boxes, rules = three_visits(tmp_path)
    content = write_walk(tmp_path / "sent.ts", boxes).read_bytes()
    stop, sent, gallery = threading.Event(), [], tmp_path / "gallery"

    def send(connection):
        connection.sendall(content)
        sent.append(connection)
        if len(sent) == 2:
            wait_for(lambda: found_in(gallery).count('"visit"') > len(TRUTH))
            stop.set()
        return stop.is_set()

    with camera_that(send) as address:
        settings = {"camera": "door", "every_s": 0.001, "stop": stop, "first_wait_s": 1.0}
        watch(address, gallery, model, processor, rules, **settings)
    records = records_of(gallery)
    assert len(records) == 2
    assert all(record.camera.startswith("door/20") for record in records)
    first = list(records[0].visits.values())
    assert [(visit.start_s, visit.end_s) for visit in first] == [
        pytest.approx(span, abs=0.11) for span in TRUTH
    ]
    opened = Gallery.open(gallery, model, processor)
    assert {moment.camera for _, moment in opened.stored.moments()} >= {records[0].camera}
    assert len(opened.rows_of_moments("door")) == len(opened)
    assert "secret" not in (records[0].folder / FOUND).read_text()
    with pytest.raises(ValueError, match=r"is not kept: its recorder has 20\d\d-\d\d-\d\d \d\d:"):
        cut_clip(opened.stored.moment(0), tmp_path)


def test_a_film_at_an_address_is_watched_once(model, processor, tmp_path, caplog):
    boxes, rules = three_visits(tmp_path)
    (tmp_path / "films").mkdir()
    write_walk(tmp_path / "films" / "walk.mkv", boxes)
    files = partial(SimpleHTTPRequestHandler, directory=tmp_path / "films")
    caplog.set_level("INFO")
    with ThreadingHTTPServer(("127.0.0.1", 0), files) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/walk.mkv"
        watch(address, tmp_path / "gallery", model, processor, rules, camera="door")
        server.shutdown()
    (record,) = records_of(tmp_path / "gallery")
    assert len(record.visits) == len(TRUTH)
    assert "door: a film, not a camera: it was looked through once" in caplog.text


def test_a_connection_that_shows_nothing_leaves_no_film(model, processor, tmp_path):
    boxes, rules = three_visits(tmp_path)
    content = write_walk(tmp_path / "sent.ts", boxes).read_bytes()
    stop, sent, gallery = threading.Event(), [], tmp_path / "gallery"

    def send(connection):
        connection.sendall(content[:6_000])
        sent.append(connection)
        if len(sent) == 2:
            stop.set()
        return stop.is_set()

    with camera_that(send) as address:
        watch(address, gallery, model, processor, rules, camera="door", stop=stop, first_wait_s=0.01)
    assert records_of(gallery) == []


def test_what_is_forgotten_of_a_stream_while_it_is_watched_does_not_come_back(model, processor, tmp_path):
    boxes, rules = three_visits(tmp_path)
    content = write_walk(tmp_path / "sent.ts", boxes).read_bytes()
    stop, gallery = threading.Event(), tmp_path / "gallery"

    def send(connection):
        connection.sendall(content[: len(content) * 3 // 4])
        wait_for(lambda: '"visit"' in found_in(gallery))
        (record,) = records_of(gallery)
        record.forget([1])
        stop.set()
        connection.sendall(content[len(content) * 3 // 4 :])
        return True

    with camera_that(send) as address:
        watch(address, gallery, model, processor, rules, camera="door", stop=stop)
    opened = Gallery.open(gallery)
    tracks = {moment.track for _, moment in opened.stored.moments()}
    assert tracks == {visit["track"] for visit in visits_of(gallery)["visits"]}
    assert 1 not in tracks
    assert opened.stored.unreadable == {}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stream_that_is_left_keeps_who_is_in_sight(model, processor, tmp_path, name):
    boxes, rules = three_visits(tmp_path)
    content = write_walk(tmp_path / "sent.ts", boxes).read_bytes()
    before, gallery = signal.getsignal(signal.SIGTERM), tmp_path / "gallery"

    def send(connection):
        connection.sendall(content[: len(content) * 3 // 4])  # when the third is in sight
        wait_for(lambda: '"visit"' in found_in(gallery))  # the first is over, the second may come back
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(0.2)
        connection.sendall(content[len(content) * 3 // 4 :])
        return True

    with camera_that(send) as address:
        watch(address, gallery, model, processor, rules, camera="door")
    (first, second, *third) = spans(gallery)
    assert [first, second] == [pytest.approx(span, abs=0.11) for span in TRUTH[:2]]
    assert all(start_s == pytest.approx(TRUTH[2][0], abs=0.11) for start_s, _ in third)
    tracks = {moment.track for _, moment in Gallery.open(gallery).stored.moments()}
    assert tracks == {visit["track"] for visit in visits_of(gallery)["visits"]}
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_is_watched(model, processor, tmp_path, caplog):
    """A film comes, another grows, a third is none."""
    boxes, rules = three_visits(tmp_path)
    short = write_walk(tmp_path / "short.mp4", boxes, seconds=10)
    whole = write_walk(tmp_path / "whole.mp4", boxes)
    folder, gallery, stop = tmp_path / "films", tmp_path / "gallery", threading.Event()
    folder.mkdir()

    def record():
        (folder / "cam0.mp4").write_text("no film")
        shutil.copy(short, tmp_path / "copy")
        os.replace(tmp_path / "copy", folder / "cam1.mp4")
        wait_for(lambda: '"end"' in found_in(gallery))
        os.replace(whole, folder / "cam1.mp4")
        os.replace(short, folder / "cam2.mp4")
        wait_for(lambda: len(spans(gallery)) == 5)
        stop.set()

    recorder = threading.Thread(target=record)
    recorder.start()
    watch(str(folder), gallery, model, processor, rules, every_s=0.1, stop=stop)
    recorder.join()
    assert spans(gallery)[:3] == [pytest.approx(span, abs=0.11) for span in TRUTH]
    moments = [moment for _, moment in Gallery.open(gallery).stored.moments()]
    assert {moment.visit for moment in moments} == {
        (visit["camera"], visit["track"]) for visit in visits_of(gallery)["visits"]
    }
    assert caplog.text.count("left out cam0.mp4") == 1


def test_a_build_that_is_killed_goes_on_as_if_it_had_not_been(start, tmp_path):
    boxes, rules = three_visits(tmp_path)
    whole = write_walk(tmp_path / "whole.mkv", boxes)
    model, processor = load_model(str(start))
    expected = build_footage(find_films(whole, "cam1"), tmp_path / "expected", model, processor, rules)
    film, gallery = tmp_path / "cam1.mkv", tmp_path / "gallery"
    os.mkfifo(film)  # which gives no more than was written to it
    words = [
        "build",
        film,
        "--camera",
        "cam1",
        "--model",
        start,
        "--path",
        gallery,
        "--detector",
        rules.detector,
    ]
    process = subprocess.Popen([sys.executable, "-m", "tpas", "footage", *map(str, words)])
    with film.open("wb", buffering=0) as written:
        content = whole.read_bytes()
        written.write(content[: len(content) * 3 // 4])  # when the third is in sight
        wait_for(lambda: '"visit"' in found_in(gallery) or process.poll() is not None)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    os.replace(whole, film)
    again = build_footage(find_films(film, "cam1"), gallery, model, processor, rules)
    assert visits_of(gallery)["visits"] == visits_of(expected.path)["visits"]
    assert again.ids == expected.ids
