"""The log of who was shown what: what is changed in it shows, and a kill or a full disk loses no line."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from tpas.__main__ import main
from tpas.service.audit import START, AuditError, AuditLog, verify


@pytest.fixture
def file(tmp_path):
    """A log of five lines: opened, three searches, closed."""
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write([{"who": "desk", "texts": ["a man"]}, {"who": "gate", "texts": ["bjørn \ud800"]}])
    log.write([{"who": "desk", "texts": ["a hat"]}])
    log.close()
    return log.path


def lines_of(file):
    return file.read_bytes().splitlines(keepends=True)


def test_a_log_is_whole_and_its_owners_alone(file, capsys):
    seen = verify(file)
    content = [json.loads(line) for line in lines_of(file)]
    assert (seen.lines, seen.problem, seen.is_closed) == (5, None, True)
    assert [line["line"] for line in content] == [1, 2, 3, 4, 5]
    assert [line["before"] for line in content] == [START, *(line["hash"] for line in content[:-1])]
    assert seen.head == content[-1]["hash"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    main(["audit", "verify", str(file), "--head", content[2]["hash"]])
    assert seen.head in capsys.readouterr().out


def changed(file):
    return [line.replace(b"gate", b"desk") for line in lines_of(file)]


def without(*numbers):
    return lambda file: [line for number, line in enumerate(lines_of(file), 1) if number not in numbers]


def put_in(file):
    lines = lines_of(file)
    return [*lines[:3], lines[1], *lines[3:]]


@pytest.mark.parametrize(
    ("tampered", "problem"),
    [
        (changed, "line 3 was changed"),
        (without(2), "line 2 was removed"),
        (without(2, 3), "lines 2 to 3 were removed"),
        (without(1), "line 1 was removed"),
        (put_in, "line 4 was put in: it is called line 2"),
        (lambda file: [*lines_of(file)[:2], b"{}\n"], "line 3 is none of an audit log"),
    ],
)
def test_the_first_line_that_was_touched_is_named(file, tampered, problem, capsys):
    file.write_bytes(b"".join(tampered(file)))
    with pytest.raises(SystemExit) as end:
        main(["audit", "verify", str(file)])
    assert end.value.code == 3
    assert problem in capsys.readouterr().out


def test_a_line_of_another_log_is_no_part_of_it(file, tmp_path):
    other = AuditLog(tmp_path / "other.jsonl")
    other.write([{"who": "nobody"}])
    other.close()
    lines = lines_of(file)
    file.write_bytes(b"".join([lines[0], lines_of(other.path)[1], *lines[2:]]))
    assert "line 2 does not follow" in verify(file).problem


def test_what_is_cut_off_at_the_end_shows_by_a_noted_hash_alone(file):
    head = verify(file).head
    file.write_bytes(b"".join(lines_of(file)[:3]))
    cut = verify(file)
    assert (cut.problem, cut.is_closed) == (None, False)
    assert "cut off" in verify(file, head).problem
    assert verify(file, cut.head).problem is None
    with pytest.raises(SystemExit, match="--head takes a hash of 64 digits"):
        main(["audit", "verify", str(file), "--head", head[:-1]])


def test_a_torn_line_is_set_aside_and_the_log_goes_on(file, caplog):
    whole = b"".join(lines_of(file)[:4])
    file.write_bytes(whole + b'{"line":5,"who":"de')  # a kill within the write
    assert "line 5 is not whole" in verify(file).problem
    log = AuditLog(file)
    log.write([{"who": "desk"}])
    log.close()
    assert "not whole" in caplog.text
    assert file.read_bytes().startswith(whole)
    assert json.loads(lines_of(file)[4])["set_aside"] == 19
    assert (verify(file).lines, verify(file).problem) == (7, None)
    assert file.with_name("audit.jsonl.torn").read_bytes() == b'{"line":5,"who":"de\n'


def test_a_full_disk_leaves_nothing_of_a_line(tmp_path, monkeypatch):
    log = AuditLog(tmp_path / "audit.jsonl")
    before, write = log.path.read_bytes(), os.write

    def full(file, content):
        if len(content) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[: len(content) - 39])

    monkeypatch.setattr("os.write", full)
    with pytest.raises(AuditError, match="No space left on device"):
        log.write([{"who": "desk"}, {"who": "gate"}])
    monkeypatch.undo()
    assert log.path.read_bytes() == before
    log.write([{"who": "desk"}])  # once there is room
    log.close()
    assert (verify(log.path).lines, verify(log.path).problem) == (3, None)


def test_a_log_that_is_not_as_it_was_left_takes_no_line(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    content, aside = log.path.read_bytes(), tmp_path / "rotated"
    log.check()

    def refused(reason):
        for write in (log.check, lambda: log.write([{"who": "desk"}])):
            with pytest.raises(AuditError, match=reason):
                write()

    log.path.rename(aside)
    refused("it was deleted or moved")
    log.path.write_bytes(content)  # a copy is not the file
    refused("it was deleted or moved")
    aside.rename(log.path)
    for changed in (b"", content + b"a line of another's"):
        log.path.write_bytes(changed)
        refused("somebody else has written to it, or cut it")
    log.path.write_bytes(content)
    log.check()  # which tries, as the last line could not be written
    log.check()
    assert [json.loads(line)["event"] for line in lines_of(log.path)] == ["opened", "tried"]
    log.close()
    assert (verify(log.path).lines, verify(log.path).problem) == (3, None)


def test_long_logs_are_continued_at_their_last_line(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write([{"shown": 40_000 * ["an-id"]}])  # longer than a block
    log.write([{"who": 70_000 * "x"}, {"who": "desk"}])
    log.close()
    AuditLog(log.path).close()
    assert (verify(log.path).lines, verify(log.path).problem) == (7, None)


def test_a_log_that_cannot_be_one_is_refused_by_name(tmp_path, file):
    for none in (tmp_path, Path("/dev/null")):
        with pytest.raises(AuditError, match="cannot be written: it is no file"):
            AuditLog(none)
    text = tmp_path / "notes.txt"
    text.write_text("buy milk\n")
    with pytest.raises(AuditError, match="notes.txt: its last line is none of an audit log"):
        AuditLog(text)
    assert text.read_text() == "buy milk\n"
    log = AuditLog(file)
    with pytest.raises(AuditError, match="another audit log is written there"):
        AuditLog(file)
    log.close()
