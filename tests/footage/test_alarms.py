"""Alarms: none lost and none twice, whatever is killed; a webhook that hangs holds nothing up."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_films import two_cameras
from tiny_inputs import tiny_processor

from tpas.__main__ import main as tpas_command
from tpas.data.moments import Moment
from tpas.footage.alarms import ALARMS, RAISED, WATCHED, AlarmLog, Alarms, QuietHours, raised_in
from tpas.footage.intake import build_footage, look_through
from tpas.footage.records import FilmRecord, KeptVisit
from tpas.footage.rules import FootageRules
from tpas.footage.sources import Source, find_films
from tpas.footage.standing import Alarm, StandingQueries
from tpas.footage.watching import watch
from tpas.footage.webhook import Webhook

# Judges 150 visits, each of which raises an alarm, a film of ten at a time; what stands in for the gallery
# needs no torch, so that the process is there soon.
JUDGE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from tpas.data.moments import Moment
from tpas.footage.alarms import AlarmLog, Alarms
from tpas.footage.records import FilmRecord, KeptVisit
from tpas.footage.standing import Alarm

def find(gallery, ids):
    alarms = []
    for name in ids:
        camera, track = name.split("/")
        moment = Moment(camera, 1.0, 2.0, int(track), (0, 0, 1, 1), 1.0)
        alarms.append(Alarm(name, "a man", moment, 1.0, 0.0, 1.0))
    return alarms

log = AlarmLog(Path(sys.argv[1]), [FilmRecord(Path("."), "film0", visits={4: None})])
alarms = Alarms(SimpleNamespace(find=find), log, clips=False, show=lambda alarm: print(alarm.id, flush=True))
gallery = SimpleNamespace(stored=SimpleNamespace(rows_of=list))
for film in range(15):
    view = lambda track: (SimpleNamespace(name=str(track)),)
    visits = {track: KeptVisit(track, 1.0, 2.0, view(track)) for track in range(1, 11)}
    alarms.judge(gallery, [FilmRecord(Path("."), f"film{film}", visits=visits)])
"""


def test_a_kill_at_any_time_loses_no_alarm_and_none_comes_twice(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", JUDGE, str(tmp_path)]
    printed = []
    for lines in (37, 95, None):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            printed.append(line.strip())
            if lines is not None and len(printed) >= lines:
                process.kill()
                break
        process.stdout.close()
        process.wait()
    assert process.returncode == 0
    raised = [json.loads(line)["id"] for line in (tmp_path / RAISED).read_text().splitlines()]
    # What was there before the first start is the past.
    expected = {f"film{film}/{track}" for film in range(15) for track in range(1, 11)}
    assert sorted(raised) == sorted(expected - {f"film0/{track}" for track in range(1, 5)})
    assert set(printed) <= set(raised)


def alarm_of(track, text="a man", camera="cam", start_s=1.0):
    moment = Moment(camera, start_s, start_s + 2, track, (0, 0, 1, 1), start_s)
    raised_at = "2026-11-26T08:00:00+01:00"
    return Alarm(f"{camera}/{track}/{text}", text, moment, 1.0, 0.0, 1.0, raised_at=raised_at)


def record_of(*tracks, camera="cam"):
    return FilmRecord(Path(), camera, visits={t: KeptVisit(t, 1.0, 3.0, ()) for t in tracks})


def test_a_line_that_was_cut_off_is_removed_and_any_other_is_named(tmp_path):
    log = AlarmLog(tmp_path)
    for track in range(3):
        log.add(alarm_of(track), to_send=track > 0)
    log.mark_judged([record_of(2)])
    log.mark_sent("cam/1/a man")
    raised, watched = ((tmp_path / name).read_bytes() for name in (RAISED, WATCHED))
    for cut in (raised.rfind(b"{"), raised.rfind(b"{") + 1, len(raised) - 1):
        (tmp_path / RAISED).write_bytes(raised[:cut])
        (tmp_path / WATCHED).write_bytes(watched + b'{"sent": ["cam/')
        again = AlarmLog(tmp_path)
        assert [name in again for name in ("cam/0/a man", "cam/1/a man", "cam/2/a man")] == [
            True,
            True,
            False,
        ]
        assert again.owed == []  # an alarm without its line is raised again
        assert again.unjudged(record_of(2, 3)) == list(record_of(3).visits.values())
        assert (tmp_path / RAISED).read_bytes().endswith(b"}\n")
    (tmp_path / RAISED).write_bytes(raised)
    (tmp_path / WATCHED).write_bytes(watched)
    assert [line["id"] for line in AlarmLog(tmp_path).owed] == ["cam/2/a man"]
    (tmp_path / RAISED).write_bytes(b"{}\n" + raised)
    with pytest.raises(ValueError, match="alarms.jsonl, line 1 is damaged"):
        AlarmLog(tmp_path)


def test_an_alarm_whose_clip_cannot_be_cut_is_raised(tmp_path, monkeypatch, caplog):
    def refused(moment, folder, faces):
        raise PermissionError(13, "Permission denied", "film.mp4")

    monkeypatch.setattr("tpas.footage.alarms.cut_clip", refused)
    found = SimpleNamespace(find=lambda gallery, ids: [alarm_of(1)])
    shown = []
    alarms = Alarms(found, AlarmLog(tmp_path), clips=True, show=shown.append)
    record = replace(record_of(), visits={1: KeptVisit(1, 1.0, 3.0, (SimpleNamespace(name="1-1.jpg"),))})
    alarms.judge(SimpleNamespace(stored=SimpleNamespace(rows_of=list)), [record])
    assert [(alarm.id, alarm.clip) for alarm in shown] == [("cam/1/a man", None)]
    assert "no clip of visit 1: [Errno 13] Permission denied" in caplog.text


def test_alarms_come_newest_first_through_the_hour_that_is_there_twice(tmp_path):
    log = AlarmLog(tmp_path / ALARMS)
    times = ["2026-10-25T02:50:00+02:00", "2026-10-25T02:10:00+01:00", "2026-10-25T03:20:00+01:00"]
    for track, raised_at in enumerate(times):
        log.add(replace(alarm_of(track), raised_at=raised_at), to_send=False)
    assert [line["raised_at"] for line in raised_in(tmp_path)] == times[::-1]


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    log = AlarmLog(tmp_path)
    log.add(alarm_of(1))
    before = (tmp_path / RAISED).read_bytes()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, content: write(file, content[:9]))
        with pytest.raises(OSError, match="alarms.jsonl could not be written: the disk is full"):
            log.add(alarm_of(2))
    assert (tmp_path / RAISED).read_bytes() == before
    assert "cam/2/a man" not in log


def test_quiet_hours_go_over_midnight():
    night, noon = QuietHours.read("22:00-06:00"), QuietHours.read("9:30 - 12:00")
    times = [
        "2026-11-26T22:00",
        "2026-11-26T23:59",
        "2026-11-27T05:59",
        "2026-11-27T06:00",
        "2026-11-27T10:00",
    ]
    assert [night.hold(datetime.fromisoformat(time)) for time in times] == [True, True, True, False, False]
    assert [noon.hold(datetime.fromisoformat(time)) for time in times] == [False] * 4 + [True]
    for wrong in ("22:00", "24:00-06:00", "6-8", "08:00-08:00"):
        with pytest.raises(ValueError, match="quiet hours"):
            QuietHours.read(wrong)


@contextmanager
def receiver(answers):
    """An address that answers as `answers` says, by the alarm's id and in turn; yields it and what it got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            alarm = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((alarm["id"], self.headers.get("Authorization")))
            status = answers(alarm["id"], len(got))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"http://127.0.0.1:{server.server_port}/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_webhook_is_tried_again_and_what_it_takes_is_noted(caplog):
    def answers(name, number):
        return {"redirected": 302, "gone": 404}.get(name, 503 if number == 1 else 200)

    sent = []
    with receiver(answers) as (address, got):
        hook = Webhook(f"http://me:pass%21@{address}/a?key=secret", sent.append, first_wait_s=0.01)
        for name in ("one", "redirected", "gone", "two"):
            hook.put({"id": name})
        deadline = time.monotonic() + 10
        while len(sent) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        hook.close()
    assert [name for name, _ in got] == ["one", "one", "redirected", "gone", "two"]
    assert {key for _, key in got} == {"Basic bWU6cGFzcyE="}
    assert sent == ["one", "two"]
    assert f"http://{address} took no alarm: it redirects (status 302)" in caplog.text
    assert f"{address}: 2 of the alarms" in caplog.text
    assert "secret" not in caplog.text
    assert "pass" not in caplog.text


def test_what_was_not_taken_is_sent_once_the_address_is_back():
    sent = []
    with receiver(lambda name, number: 503 if number <= 2 else 200) as (address, got):
        hook = Webhook(f"http://{address}/", sent.append, tries=1, first_wait_s=0.01, again_s=0.02)
        hook.put({"id": "one"})
        deadline = time.monotonic() + 10
        while not sent and time.monotonic() < deadline:
            time.sleep(0.01)
        hook.close()
    assert (sent, [name for name, _ in got]) == (["one"], 3 * ["one"])


def test_an_address_that_hangs_or_sends_a_byte_at_a_time_holds_nothing_up(caplog):
    stop = threading.Event()

    def drip(connection):
        with connection:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"H")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        began = time.monotonic()
        hook = Webhook(
            f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.2, tries=2, first_wait_s=0.01
        )
        hook.put({"id": "one"})
        assert time.monotonic() - began < 0.4  # what two tries take
        deadline = time.monotonic() + 10
        while "it is kept" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "took no alarm (no answer in 0.2 s): it is kept" in caplog.text
        hook.put({"id": "two"})
        began = time.monotonic()
        hook.close(wait_s=0.1)
        assert time.monotonic() - began < 1.0
        stop.set()
        server.shutdown(socket.SHUT_RDWR)
    assert f"{hook.name}: 2 of the alarms" in caplog.text
    refused = Webhook("http://127.0.0.1:9", tries=1)
    refused.put({"id": "three"})
    refused.close()
    assert "http://127.0.0.1:9 took no alarm (Connection refused)" in caplog.text


def test_only_addresses_of_the_web_are_called():
    for wrong in ("ftp://host/secret", "host/secret", "http://", "https://ho st/secret", "http://h:x/secret"):
        with pytest.raises(ValueError, match="https://host/path") as error:
            Webhook(wrong)
        assert "secret" not in str(error.value)


@pytest.fixture
def filmed(tmp_path):
    two_cameras(tmp_path)
    return tmp_path / "films", FootageRules(detector=f"boxes:{tmp_path / 'boxes.jsonl'}")


def test_each_visit_of_a_folder_that_grows_is_an_alarm_once(filmed, model, processor, tmp_path, monkeypatch):
    """Killed before an alarm is kept, and after; quiet ones are not sent, and those owed are sent again."""
    films, rules = filmed
    (films / "cam2.avi").rename(tmp_path / "cam2.avi")
    folder, gallery = tmp_path / "gallery" / ALARMS, tmp_path / "gallery"
    queries = StandingQueries(("a man", "a woman"), ((-99.0,), (99.0,)), 1.0, 1, 1.0)
    sent, shown = [], []

    class Killed(BaseException):
        pass

    class Sending:
        def put(self, line):
            sent.append(line["id"])

    def go_on(rounds, kill=None, sending=True):
        stop, log = threading.Event(), AlarmLog(folder)
        if kill is not None:
            monkeypatch.setattr(log, kill, lambda *_, **__: (_ for _ in ()).throw(Killed))
        hook = Sending() if sending else None
        quiet = QuietHours.read("00:00-23:59") if rounds == "quiet" else None
        alarms = Alarms(queries, log, show=shown.append, webhook=hook, quiet=quiet)

        def judge(*found):
            stop.set()
            alarms.judge(*found)

        watch(str(films), gallery, model, processor, rules, every_s=0.01, stop=stop, encoded=judge)
        return log

    with pytest.raises(Killed):
        go_on(1, kill="add")
    assert (sent, shown) == ([], [])
    with pytest.raises(Killed):
        go_on(1, kill="mark_judged")
    assert len(sent) == len(shown) == 2
    go_on(1)  # those are still owed, and sent again
    assert len(set(sent)) == 2
    assert len(sent) == 4
    assert len(shown) == 2
    (tmp_path / "cam2.avi").rename(films / "cam2.avi")
    log = go_on("quiet")
    lines = [json.loads(line) for line in (folder / RAISED).read_text().splitlines()]
    assert [(line["camera"], line["track"]) for line in lines] == [
        (camera, track) for camera in ("cam1.mp4", "cam2.avi") for track in (1, 2)
    ]
    assert [line["quiet"] for line in lines] == [False, False, True, True]
    assert lines[0]["started"].startswith("2026-11-26T08:00:01")
    assert lines[0]["text"] == "a man"
    assert all(Path(line["clip"]).is_file() and Path(line["image"]).is_file() for line in lines)
    assert [line["id"] for line in log.owed] == [line["id"] for line in lines[:2]]


def test_what_a_killed_stream_had_found_is_judged_at_the_next_start(filmed, model, processor, tmp_path):
    films, rules = filmed
    name, gallery, told = "door/20261126T080000", tmp_path / "gallery", []
    look_through(Source(name, str(films / "cam1.mp4")), gallery, rules)
    stop = threading.Event()
    stop.set()

    def judge(opened, records):
        told.extend((record.camera, len(record.visits), len(opened) > 1) for record in records)

    settings = {"camera": "door", "stop": stop, "encoded": judge}
    watch("tcp://127.0.0.1:9", gallery, model, processor, rules, **settings)
    assert told == [(name, 2, True)]


def test_a_visit_that_was_cut_off_by_the_end_of_a_film_is_no_second_alarm(tmp_path):
    log = AlarmLog(tmp_path)
    log.add(alarm_of(1, start_s=5.0))
    whole = alarm_of(2, start_s=5.0).moment
    assert log.was_raised_as_part(whole, "a man", record_of(2).visits)
    assert not log.was_raised_as_part(whole, "a woman", record_of(2).visits)
    assert not log.was_raised_as_part(whole, "a man", record_of(1, 2).visits)  # two people at a time
    assert not log.was_raised_as_part(replace(whole, start_s=9.0), "a man", record_of(2).visits)


def test_the_command_watches_a_film_and_replays_it(filmed, start, tmp_path, capsys):
    films, rules = filmed
    words = ["--model", str(start), "--detector", rules.detector, "--reference", str(films / "cam2.avi")]
    words += ["--alarms_per_day", "8500", "--json"]
    film, gallery = str(films / "cam1.mp4"), tmp_path / "gallery"
    tpas_command(["watch", film, "a man runs", *words, "--path", str(gallery)])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    raised = (gallery / ALARMS / RAISED).read_text() if printed else ""
    assert [json.loads(line) for line in raised.splitlines()] == printed
    truth = tmp_path / "true.csv"
    truth.write_text("camera,start_s,end_s\ncam1.mp4,1,3\ncam1.mp4,4,5\n")
    tpas_command(["watch", str(gallery), "a man runs", *words, "--replay", "--labels", str(truth)])
    replayed = json.loads(capsys.readouterr().out)
    assert [alarm["id"] for alarm in replayed["alarms"]] == [alarm["id"] for alarm in printed]
    assert {"camera": "cam1.mp4", "start_s": 4.0, "end_s": 5.0, "text": None} in replayed["missed"]
    tpas_command(["watch", film, "--model", str(start), "--detector", rules.detector, "--path", str(gallery)])
    assert "cam1.mp4: 2 visits" in capsys.readouterr().out
    texts_file = tmp_path / "texts.txt"
    texts_file.write_text("".join(f"a man number {number}\n" for number in range(10_000)))
    for wrong, said in (
        ([film, "a man runs", "--path", "g"], "--reference names some"),
        (
            [film, "a man runs", *words, "--alarms_per_day", "1", "--path", "g"],
            "need 24.0 hours of reference",
        ),
        ([film, *words, "--texts_file", str(texts_file), "--path", "g"], "10,000 texts, and at most 100"),
        ([film, "a man", *words, "--path", "g", "--webhook", "ftp://a"], "a webhook is an address"),
        ([film, "a man", *words, "--path", "g", "--quiet", "noon"], "quiet hours are a time to a time"),
        ([film, "a man", *words], "--path names the gallery"),
        ([film, "!!!", *words, "--path", "g"], "punctuation alone"),
        ([str(tmp_path / "none"), "a man", *words, "--path", "g"], "no such film or folder"),
        ([film, "a man", *words[:4], "--reference", str(tmp_path / "none"), "--path", "g"], "no such film"),
        ([film, "a man", *words[:4], "--reference", str(gallery), "--path", str(gallery)], "give another"),
        ([film, "a man", *words[:4], "--reference", "rtsp://a", "--path", "g"], "is a stream"),
        ([film, "a man", *words, "--views", "2", "--path", "g"], "looked through with"),
        ([str(films), "a man", *words, "--path", str(films / "g")], "clips of its alarms would be watched"),
        ([str(gallery), "a man", *words, "--path", "g"], "is a gallery: --replay"),
        ([film, "--quiet", "22:00-06:00", "--path", "g"], "are for texts"),
    ):
        with pytest.raises(SystemExit, match=said) as ended:
            tpas_command(["watch", *wrong])
        assert "\n" not in str(ended.value)


def test_a_reference_of_another_model_is_refused(filmed, model, tiny_config, start, tmp_path):
    films, rules = filmed
    build_footage(find_films(films), tmp_path / "reference", model, tiny_processor(tiny_config), rules)
    words = ["--model", str(start), "--reference", str(tmp_path / "reference"), "--alarms_per_day", "8500"]
    with pytest.raises(SystemExit, match="was made by the model .*, and this one is"):
        tpas_command(["watch", str(films / "cam1.mp4"), "a man", *words, "--path", str(tmp_path / "g")])
