"""Files and folders that are whole or not there: written beside their place, then renamed into it.

    with replacing(path) as unfinished:
        unfinished.write_bytes(content)

Until then they lie beside, in a hidden folder `.NAME.RANDOM.partial`, which only a killed process leaves; the
next one that writes `path` removes it.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of safetensors, numpy and torch, whose errors have no number.
NO_ROOM = re.compile(
    r"No space left|File too large|os error (28|27)\b|requested and \d+ written|failed writing file"
)
UNFINISHED = ".partial"  # how names end of what is being written
BEGUN = ".begun"  # and for a moment before, until it is locked
WRITER = "writer.lock"  # in such a folder, held by who writes it
A_DAY = 24 * 60 * 60.0  # seconds


class AlreadyHeldError(RuntimeError):
    """Another living process holds the lock; the message says which: "process 4711 on HOST"."""


@contextmanager
def held_alone(lock_file: Path, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock that the operating system gives back when its process ends, however it ends.

    Args:
        lock_file: made if need be, in a folder that is there; it stays.
        wait: seconds to wait for the process that holds it.

    Raises:
        AlreadyHeldError: another process holds it.
        OSError: the file cannot be made.
    """
    import filelock  # not for every command that imports this file

    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=wait)
    except filelock.Timeout:
        raise AlreadyHeldError(holder_of(lock_file)) from None
    try:
        if not isinstance(lock, filelock.SoftFileLock):  # which writes as much itself
            lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def holder_of(lock_file: Path) -> str:
    """What the process that holds a lock wrote into it: "process 4711 on HOST"."""
    try:
        return lock_file.read_text(encoding="utf-8", errors="replace").strip()[:200] or "another process"
    except OSError:
        return "another process"


def check_place(path: Path) -> None:
    """Refuses, before hours of work, a file that could not be written after them. Makes its folder.

    Raises:
        OSError: it is a folder, or its own folder cannot be made or written to.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"no place for {path}: {error}") from error
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"no place for {path}: its folder cannot be written to")


def file_checksum(path: Path) -> str:
    """32 hexadecimal digits that stand for a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def content_of(folder: Path) -> dict[str, dict[str, int | str]]:
    """The length in bytes and the checksum of every file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": file_checksum(path)}
        for path in files
    }


def is_denied(path: Path) -> bool:
    """Whether there is a file or folder that this user may not read. Libraries' errors do not tell: that of
    safetensors says that there is none."""
    try:
        return path.exists() and not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))
    except PermissionError:  # of a folder above
        return True


def check_readable(folder: Path) -> None:
    """Raises PermissionError, with the way out, for a folder or a file in it that this user may not read."""
    for path in (folder, *(() if is_denied(folder) or not folder.is_dir() else folder.iterdir())):
        if is_denied(path):
            raise PermissionError(denial(path))


def denial(path: str | Path) -> str:
    """What to say of a file or folder that this user may not read, with the way out."""
    return (
        f"{path} may not be read by this user: its owner can allow it, by chmod -R a+rX {path}, and by chmod "
        "a+x on the folders above"
    )


@contextmanager
def explained_denial(path: str | Path) -> Iterator[None]:
    """Says of a permission error which file it is about, and the way out."""
    try:
        yield
    except PermissionError as error:
        raise PermissionError(denial(path)) from error


def write_json(path: Path, content: Any, **how: bool) -> None:
    """Replaces a file by this content in JSON; `how` as of [`replacing`]."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", **how)


def write_text(path: Path, text: str, **how: bool) -> None:
    """Replaces a file by this text in UTF-8; `how` as of [`replacing`]."""
    with replacing(path, **how) as unfinished:
        unfinished.write_bytes(text.encode())


@contextmanager
def replacing(path: Path, *, durable: bool = False, private: bool = False) -> Iterator[Path]:
    """Yields a free path, of this call alone; the file or folder made there then takes the place of `path`.

    If that fails, nothing is left of it, and what was there is untouched. Makes the folder of `path`, and
    removes from it what killed processes left unfinished of `path`; what a living one writes is locked.

    Args:
        durable: also leave nothing in the system's memory alone, where a power cut would lose it.
        private: a file that its owner alone may read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, glob.escape(path.name))
    begun = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=BEGUN))
    folder = begun.with_suffix(UNFINISHED)
    try:
        with explained_full_disk(path), held_alone(begun / WRITER):
            begun.rename(folder)  # locked before it has the name under which others look for what is left
            unfinished = folder / path.name
            yield unfinished
            put_in_place(unfinished, path, durable=durable, private=private)
    finally:
        for left in (begun, folder):
            shutil.rmtree(left, ignore_errors=True)


def remove_abandoned(folder: Path, pattern: str = "*") -> None:
    """Removes what killed processes left unfinished in a folder, of the names that match `pattern`.

    What a living process writes is locked. What is not, as of early versions, goes when it is a day old.
    """
    for left in (*folder.glob(f".{pattern}.*{UNFINISHED}"), *folder.glob(f".{pattern}.*{BEGUN}")):
        with suppress(AlreadyHeldError, OSError):
            if left.suffix == UNFINISHED and (left / WRITER).is_file():
                with held_alone(left / WRITER):
                    shutil.rmtree(left, ignore_errors=True)
            elif left.stat().st_mtime < time.time() - A_DAY:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def explained_full_disk(path: Path) -> Iterator[None]:
    """Says of a write that failed for want of room which file it is about; libraries' errors do not.

    Raises:
        OSError: in place of theirs, with the number that says why.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        told = isinstance(error, OSError) and str(path) in str(error)
        if told or not (number in FULL or NO_ROOM.search(str(error))):
            raise
        full = OSError(
            f"{path} could not be written: the disk is full, or a quota or a limit of file sizes is reached "
            f"({' '.join(str(error).split())}); make room and do the same again. What was there is untouched"
        )
        full.errno = number or errno.ENOSPC
        raise full from error


def put_in_place(unfinished: Path, path: Path, *, durable: bool = False, private: bool = False) -> None:
    """Renames a finished file or folder to `path`, replacing what is there; for what several processes wrote.

    A folder cannot replace another in one step: the old one is first renamed to `.NAME.replaced`, from where
    [`recover`] takes it if the process is killed in between.
    """
    written = [unfinished, *unfinished.rglob("*")]
    if private:
        unfinished.chmod(0o600)
    else:
        open_by_umask(unfinished)
    if durable:
        for entry in written:
            _flush(entry)
    replaced = _set_aside(path)
    if replaced.exists():  # left by a process that was killed; now superseded
        shutil.rmtree(replaced, ignore_errors=True)
    if unfinished.is_dir() and path.exists():
        os.replace(path, replaced)
    os.replace(unfinished, path)
    if durable:
        _flush(path.parent)
    if replaced.exists():
        shutil.rmtree(replaced, ignore_errors=True)


def recover(path: Path) -> None:
    """Removes what killed processes left of `path`, and puts back a folder that one was about to replace.

    Only where no other process is writing it.
    """
    replaced = _set_aside(path)
    if replaced.exists() and not path.exists():
        os.replace(replaced, path)
    for left in (replaced, *path.parent.glob(f".{glob.escape(path.name)}.*partial")):
        shutil.rmtree(left, ignore_errors=True)


def _set_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def open_by_umask(path: Path) -> None:
    """Gives a file, or all in a folder, that the owner alone may read the mode of other new files.

    safetensors writes such files, whatever the umask. What goes through [`replacing`] or [`put_in_place`]
    needs no more; this is for what is written where the caller wants it.
    """
    files = [entry for entry in (path, *path.rglob("*")) if entry.is_file()]
    private = [file for file in files if file.stat().st_mode & 0o777 == 0o600]
    if private:
        with tempfile.TemporaryDirectory(dir=path if path.is_dir() else path.parent) as folder:
            usual = Path(folder) / "file"
            usual.touch()
            for file in private:
                file.chmod(usual.stat().st_mode & 0o777)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
