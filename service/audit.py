"""The log of who searched for what, and was shown what: appended to alone, each line bound to the one before.

A line is a JSON object that ends with the `hash` of all before it in the line; its `before` is the hash of
the line above. So a line that was changed, taken out or put in shows at the first such place. What no file
can show by itself is its end: lines that were cut off there, or a file that was written anew from some line
on. The hash of the last line, noted elsewhere, shows both: see `verify`.
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from ..data.whole_files import AlreadyHeldError, held_alone

logger = logging.getLogger(__name__)

START = 64 * "0"  # what the first line has as its `before`
HASH = re.compile(rb',"hash":"([0-9a-f]{64})"}$')
OPENED, CLOSED = "opened", "closed"  # the first line of a server, and its last
TRIED = "tried"  # after a line that could not be written, whether one can be again
ROOM = 2**20  # bytes that have to be free: some lines


class AuditError(OSError):
    """The log cannot be written, or is none."""


@dataclass(frozen=True)
class Verified:
    """What `verify` saw of a file.

    Attributes:
        lines: those from the beginning on that are whole and unchanged.
        head: the hash of the last of these: note it elsewhere.
        problem: what is wrong with the first line that is not; None where there is none.
        is_closed: the last line was written by a server that ended in order. Where it is not, a server is
            running, was killed, or lines were cut off.
    """

    lines: int
    head: str
    problem: str | None
    is_closed: bool


class AuditLog:
    """Appends to a file that this process alone holds, until `close`; for several threads.

    What a killed process has left of a line is set aside, in FILE.torn, and said. Where the file is deleted,
    moved, or written to by anybody else, no line is taken until it is as it was, or the next start.

    Raises:
        AuditError: another process holds it, it cannot be written, or its last line is none of such a log.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.exists() and not path.is_file():
            raise AuditError(f"the audit log {path} cannot be written: it is no file")
        self._lock, self._held, self._failed = threading.Lock(), ExitStack(), False
        try:
            self._held.enter_context(held_alone(path.with_name(f".{path.name}.lock")))
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._file = os.open(path, flags, 0o600)
            self._held.callback(os.close, self._file)
            torn = self._find_end()
            _flush_folder(path)
        except AlreadyHeldError as error:
            raise AuditError(f"{path}: another audit log is written there, by {error}") from None
        except AuditError:
            self._held.close()
            raise
        except OSError as error:
            self._held.close()
            raise AuditError(f"the audit log {path} cannot be written: {error.strerror or error}") from error
        try:
            self.write([{"event": OPENED} | ({"set_aside": torn} if torn else {})])
        except AuditError:
            self._held.close()
            raise

    def write(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Appends a line each; they are on the disk when this returns.

        Raises:
            AuditError: they are not, and nothing is left of them; as where the disk is full.
        """
        with self._lock:
            self._failed = True  # until it has not
            self._check_file()
            written, head = [], self.head
            for number, entry in enumerate(entries, start=self.lines + 1):
                line, head = _line(number, head, entry)
                written.append(line)
            try:
                _write_all(self._file, b"".join(written))
                os.fsync(self._file)
            except OSError as error:
                with suppress(OSError):  # then the next start finds it torn
                    os.ftruncate(self._file, self.size)
                reason = error.strerror or error
                raise AuditError(f"the audit log {self.path} cannot be written: {reason}") from error
            self.head, self.lines = head, self.lines + len(written)
            self.size += sum(map(len, written))
            self._failed = False

    def check(self) -> None:
        """Raises AuditError where a line cannot be written now; writes one only where the last could not."""
        with self._lock:
            self._check_file()
            disk = os.fstatvfs(self._file)
            if disk.f_blocks and disk.f_bavail * disk.f_frsize < ROOM:
                raise AuditError(f"the audit log {self.path} cannot be written: its disk is full")
        if self._failed:
            self.write([{"event": TRIED}])

    def _check_file(self) -> None:
        """Raises AuditError where the file is not the one that was opened, as it was left."""
        try:
            own = os.fstat(self._file)
            is_there = os.path.samestat(os.stat(self.path), own)
        except OSError:
            is_there = False
        if not is_there:
            reason = "it was deleted or moved"
        elif own.st_size != self.size:
            reason = "somebody else has written to it, or cut it"
        else:
            return
        raise AuditError(
            f"the audit log {self.path} cannot be written: {reason}; put it back as it was, or start the "
            "server again, with another file for a new log"
        )

    def close(self) -> None:
        """Its last line says that it ended in order."""
        with suppress(AuditError):
            self.write([{"event": CLOSED}])
        self._held.close()

    def _find_end(self) -> int:
        """Looks at the last line; returns how many bytes after it were set aside."""
        with open(self.path, "rb") as file:
            whole, last = _last_line(file)
            file.seek(whole)
            torn = file.read()
        if torn:
            aside = self.path.with_name(f"{self.path.name}.torn")
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as file:
                file.write(torn + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.ftruncate(self._file, whole)
            logger.warning("%s: its last line was not whole (a kill): it is in %s", self.path, aside)
        self.size, self.lines, self.head = whole, 0, START
        if last:
            read = _read(last)
            if isinstance(read, str):
                raise AuditError(
                    f"{self.path}: its last line {read}; `tpas audit verify {self.path}` says where that "
                    "begins: name another file for a new log"
                )
            self.lines, self.head = read["line"], read["hash"]
        return len(torn)


def verify(path: Path, noted: str | None = None) -> Verified:
    """Looks through a log; it may be written meanwhile.

    Args:
        noted: the hash of what was the last line once: that line has to be there still.

    Raises:
        OSError: the file cannot be read.
    """
    head, number, closed, seen = START, 0, False, noted is None

    def verified(problem: str | None) -> Verified:
        return Verified(number, head, problem, closed)

    with open(path, "rb") as file:
        for content in file:
            if not content.endswith(b"\n"):
                return verified(f"line {number + 1} is not whole: a kill, or it is being written")
            read = _read(content)
            if isinstance(read, str):
                return verified(f"line {number + 1} {read}")
            if read["line"] != number + 1 or read["before"] != head:
                return verified(_gap(number, read["line"]))
            number, head, closed = number + 1, read["hash"], read.get("event") == CLOSED
            seen = seen or head == noted
    if not seen:
        return verified(
            "no line has the hash that was noted: lines were cut off at the end, or the log was written anew"
        )
    return verified(None)


def is_hash(text: str) -> bool:
    """Whether it could be a line's."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _gap(number: int, named: int) -> str:
    if named == number + 1:
        return f"line {named} does not follow the line before it: that was exchanged"
    if named > number + 1:
        many = f"lines {number + 1} to {named - 1} were"
        missing = f"line {number + 1} was" if named == number + 2 else many
        return f"{missing} removed: line {named} stands there"
    return f"line {number + 1} was put in: it is called line {named}"


def _line(number: int, before: str, entry: Mapping[str, Any]) -> tuple[bytes, str]:
    """A line, and its hash."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    content = {"line": number, "time": now, **entry, "before": before}
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"hash":"{digest}"}}\n'.encode(), digest


def _read(line: bytes) -> dict[str, Any] | str:
    """What a whole line holds, or what is wrong with it."""
    line = line.rstrip(b"\n")
    found = HASH.search(line)
    if found is None:
        return "is none of an audit log"
    body = line[: found.start()] + b"}"
    if hashlib.sha256(body).hexdigest() != found[1].decode():
        return "was changed: its hash is another"
    try:
        content = json.loads(body) | {"hash": found[1].decode()}
        number, before = content["line"], content["before"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "is none of an audit log"
    if not isinstance(number, int) or not isinstance(before, str):
        return "is none of an audit log"
    return content


def _last_line(file: BinaryIO) -> tuple[int, bytes]:
    """Where the last whole line ends, and that line; 0 and nothing where there is none."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    for start in _backwards(end):
        file.seek(start)
        tail = file.read(min(end, start + BLOCK) - start) + tail
        whole = tail.rfind(b"\n") + 1
        first = tail.rfind(b"\n", 0, whole - 1) + 1 if whole else 0
        if whole and (first or not start):
            return start + whole, tail[first:whole]
    return 0, b""


BLOCK = 2**16


def _backwards(end: int) -> Iterator[int]:
    """Where blocks begin, the last first."""
    return iter(range(max(end - 1, 0) // BLOCK * BLOCK, -1, -BLOCK))


def _write_all(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]


def _flush_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
