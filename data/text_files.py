"""Text files and lists of texts that people write: one reader, so that a text is the same for every command.

Files are UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one. Other encodings are not
guessed: a file that is none of them is refused, with the way out. A line ends at LF, CR LF or CR, and at
nothing else: what else Unicode calls the end of a line may stand inside a text.
"""

import codecs
import os
import re
import string
import sys
from dataclasses import dataclass
from pathlib import Path

LINE_END = re.compile("\r\n|\r|\n")
# Of UTF-32 before that of UTF-16, with which it begins.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
LARGEST_TEXT = 2**29  # bytes of a file that is read whole: the text takes one to four times as much
WAY_OUT = "save it as UTF-8, or convert it: iconv -f {encoding} -t UTF-8 FILE > NEW_FILE"


@dataclass(frozen=True)
class PlacedText:
    """A text, and where its author finds it: "texts.txt, line 4"."""

    text: str
    place: str


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """The content of a text file, without a byte order mark; raises as [`read_bytes`] and [`decoded`]."""
    return decoded(read_bytes(path, most), str(path))


def read_bytes(path: Path, most: int) -> bytes:
    """All of a file, which may be a pipe, or ValueError for more than `most` bytes."""
    with path.open("rb") as stream:
        is_small = os.fstat(stream.fileno()).st_size <= most  # as far as is known: a pipe has 0
        content = stream.read(most + 1) if is_small else b""
    if not is_small or len(content) > most:
        raise ValueError(f"{path}: more than {most:,} bytes, and at most as many are read: divide it")
    return content


def read_texts(path: Path) -> list[PlacedText]:
    """The texts of a file, one a line; see [`texts_in`]."""
    return texts_in(read_text(path), str(path))


def read_standard_input() -> str:
    """All of it, whatever encoding the terminal is said to have; raises as [`decoded`]."""
    return decoded(sys.stdin.buffer.read(), "the standard input")


def texts_in(content: str, name: str) -> list[PlacedText]:
    """The texts of a file's content, a line each, without blanks around them and without empty lines.

    Raises:
        ValueError: a line is punctuation alone; names it.
    """
    lines = enumerate(lines_of(content), start=1)
    texts = [PlacedText(line.strip(), f"{name}, line {number}") for number, line in lines if line.strip()]
    for placed in texts:
        check_text(placed)
    return texts


def check_text(placed: PlacedText) -> None:
    """Raises ValueError, naming the place, for a text in which there is nothing to look for."""
    if not placed.text.strip(string.punctuation + string.whitespace):
        raise ValueError(f"{placed.place}: {placed.text!r} is empty, or punctuation alone")


def lines_of(text: str) -> list[str]:
    """The lines of a text, without their ends; see the top of the file for what these are."""
    lines = LINE_END.split(text)
    return lines[:-1] if lines[-1] == "" else lines


def decoded(content: bytes, name: str, first_line: int = 1) -> str:
    """The text of these bytes, without a byte order mark.

    Args:
        name: of the file, for the message.
        first_line: the number of the line that the bytes begin with.

    Raises:
        ValueError: they are in none of the encodings above; names the file, the line, the byte and a way out.
    """
    if first_line == 1:
        content = content.removeprefix(codecs.BOM_UTF8)
    marks = BYTE_ORDER_MARKS.items() if first_line == 1 else ()
    encoding = next((encoding for mark, encoding in marks if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            way_out = f"it is cut off or damaged at byte {error.start + 1}"
            raise ValueError(f"{name}: it begins as {encoding.upper()} does, but {way_out}") from error
        before = LINE_END.split(content[: error.start].decode(encoding))
        raise ValueError(
            f"{name}, line {first_line + len(before) - 1}: not UTF-8: after {before[-1][-20:]!r} comes the "
            f"byte 0x{content[error.start]:02x}; {WAY_OUT.format(encoding='CP1252')}"
        ) from error
    if "\0" in text:
        line = first_line + len(LINE_END.findall(text[: text.index("\0")]))
        raise ValueError(
            f"{name}, line {line}: it holds a zero byte, as UTF-16 without its mark does; "
            f"{WAY_OUT.format(encoding='UTF-16LE')}"
        )
    return text
