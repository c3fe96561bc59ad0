"""Files of texts as people save them: their encodings, the ends of their lines, and what is refused."""

import codecs
import io
import os

import pytest

from tpas.data.json_records import json_records, read_json
from tpas.data.text_files import lines_of, read_standard_input, read_text, read_texts

CONTENT = "a man in café\r\na woman\u2028falls\n\n  two\u0085people \rruns"
LINES = {1: "a man in café", 2: "a woman\u2028falls", 4: "two\u0085people", 5: "runs"}


@pytest.mark.parametrize(
    "content",
    [
        CONTENT.encode(),
        CONTENT.encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + CONTENT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + CONTENT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + CONTENT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + CONTENT.encode("utf-32-be"),
    ],
)
def test_a_text_is_the_same_however_its_file_is_saved(content, tmp_path, monkeypatch):
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    assert read_text(path) == CONTENT
    assert {text.place: text.text for text in read_texts(path)} == {
        f"{path}, line {number}": text for number, text in LINES.items()
    }
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
    assert read_standard_input() == CONTENT


def test_a_last_line_may_have_an_end_or_none():
    assert lines_of("a\nb\n") == lines_of("a\r\nb") == ["a", "b"]
    assert lines_of("\n\n") == ["", ""]
    assert lines_of("") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a man\r\na café".encode("cp1252"),
            r"texts.txt, line 2: not UTF-8: after 'a caf' comes the byte 0xe9; save it as UTF-8, .* iconv",
        ),
        (b"\xef\xbb\xbfone\rtwo\n\xff", "texts.txt, line 3: not UTF-8: after '' comes the byte 0xff"),
        ("a man\n".encode("utf-16-le"), "texts.txt, line 1: it holds a zero byte, as UTF-16 .*-f UTF-16LE"),
        (b"\xff\xfea", "texts.txt: it begins as UTF-16 does, but it is cut off or damaged at byte 3"),
        (b"one\n\n?!...\n", r"texts.txt, line 3: '\?!...' is empty, or punctuation alone"),
    ],
)
def test_what_is_no_text_is_refused_by_its_line(content, message, tmp_path):
    (tmp_path / "texts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / "texts.txt")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pipe", "is no file"),
        ("sparse", "4,294,967,296 bytes, and at most 67,108,864 are read"),
        ("deep", "not a JSON file"),
    ],
)
def test_a_json_file_of_others_is_read_within_bounds(tmp_path, kind, message):
    path = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(100_000 * b"[" if kind == "deep" else b"{}")
        os.truncate(path, 2**32 if kind == "sparse" else 100_000)
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        read_json(path)


@pytest.mark.parametrize(
    ("begins", "size", "message"),
    [
        (b"[", 2**27 + 1, "a.json: more than 134,217,728 bytes.*of JSON Lines, an object a line, any number"),
        (b"{", 2**24 + 1, "a.json, line 1: more than 16,777,216 bytes"),
    ],
)
def test_records_of_gigabytes_are_refused_before_they_are_read(begins, size, message, tmp_path):
    with (tmp_path / "a.json").open("wb") as stream:
        stream.write(begins)
        stream.truncate(size)
    with pytest.raises(ValueError, match=message):
        list(json_records("a.json", tmp_path / "a.json"))


def test_a_text_is_read_up_to_a_size(tmp_path):
    (tmp_path / "a.txt").write_text("four")
    assert read_text(tmp_path / "a.txt", most=4) == "four"
    with pytest.raises(ValueError, match="a.txt: more than 3 bytes"):
        read_text(tmp_path / "a.txt", most=3)
