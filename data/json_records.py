"""JSON files of whoever wrote them: read whole, or as records, each with its line."""

import codecs
import io
import json
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .text_files import decoded, read_bytes

LARGEST_JSON = 2**26  # bytes; Python takes some twenty times as much for them
LARGEST_ARRAY = 2**27
LARGEST_LINE = 2**24


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """What a JSON file in UTF-8 holds.

    Raises:
        OSError: it is not there, or this user may not read it.
        ValueError: it is no file, of more than `most` bytes, or damaged; names it.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for its writer
        raise ValueError(f"{path} is no file")
    if status.st_size > most:
        raise ValueError(f"{path}: {status.st_size:,} bytes, and at most {most:,} are read")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair could not be written
        return content
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error


def json_records(name: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of a file of JSON Lines, read line by line, or of one JSON array, read whole."""
    with path.open("rb") as stream:
        start = stream.read(1024)
        of_two_bytes = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if of_two_bytes or start.decode("utf-8-sig", errors="ignore").lstrip().startswith("["):
            try:
                text = decoded(read_bytes(path, LARGEST_ARRAY), name)
            except ValueError as error:
                raise ValueError(f"{error}; of JSON Lines, an object a line, any number is read") from error
            if text.lstrip().startswith("["):
                yield from _array_items(name, text)
                return
            stream = io.BytesIO(text.encode())
        stream.seek(0)
        for line, content in enumerate(iter(partial(stream.readline, LARGEST_LINE + 1), b""), start=1):
            if len(content) > LARGEST_LINE:
                raise ValueError(f"{name}, line {line}: more than {LARGEST_LINE:,} bytes")
            text = decoded(content, name, line)
            try:
                record = json.loads(text) if text.strip() else None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}, line {line}: not a line of JSON: {error}") from None
            if text.strip():
                yield line, record


def _array_items(name: str, text: str) -> Iterator[tuple[int, Any]]:
    """(line where it begins, value) of each item. `json.loads` would not say where an item begins."""
    decode = json.JSONDecoder().raw_decode
    position = _after_blanks(text, text.index("[") + 1)
    line, counted = 1, 0
    if text[position : position + 1] == "]" and not text[position + 1 :].strip():
        return
    while True:
        line += text.count("\n", counted, position)
        counted = position
        try:
            item, position = decode(text, position)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            raise ValueError(f"{name}, line {line}: the JSON array is broken: {error}") from None
        yield line, item
        position = _after_blanks(text, position)
        if text[position : position + 1] == ",":
            position = _after_blanks(text, position + 1)
        elif text[position:].rstrip() == "]":
            return
        else:
            line += text.count("\n", counted, position)
            raise ValueError(f"{name}, line {line}: the JSON array is broken: expected ',' or a final ']'")


def _after_blanks(text: str, position: int) -> int:
    found = re.compile(r"[ \t\n\r]*").match(text, position)
    assert found is not None  # it also matches nothing
    return found.end()
