"""Files and folders that are whole or not there: written beside their place, then renamed into it.

    with replacing(path) as unfinished:
        unfinished.write_bytes(content)

Until then they lie beside, in a hidden folder `.NAME.RANDOM.partial`, which only a killed process leaves.
"""

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = ".partial"  # how names end of what is being written


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


def is_denied(error: object) -> bool:
    """Whether an error, or one behind it, says that this user may not; libraries' own say it in words."""
    while isinstance(error, BaseException):
        if isinstance(error, PermissionError) or os.strerror(errno.EACCES) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def denial(path: str | Path) -> str:
    """What to say of a file or folder that this user may not read, with the way out."""
    return (
        f"{path} may not be read by this user: its owner can allow it, by chmod -R a+rX {path} and chmod a+x "
        "of the folders above"
    )


@contextmanager
def explained_denial(path: str | Path) -> Iterator[None]:
    """Says of a permission error which file it is about, and the way out."""
    try:
        yield
    except PermissionError as error:
        raise PermissionError(denial(path)) from error


def write_json(path: Path, content: Any, *, durable: bool = False) -> None:
    """Replaces a file by this content in JSON; see [`replacing`]."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", durable=durable)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Replaces a file by this text in UTF-8; see [`replacing`]."""
    with replacing(path, durable=durable) as unfinished:
        unfinished.write_bytes(text.encode())


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a free path, of this call alone; the file or folder made there then takes the place of `path`.

    If that fails, nothing is left of it, and what was there is untouched. Makes the folder of `path`.

    Args:
        durable: also leave nothing in the system's memory alone, where a power cut would lose it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = {"prefix": f".{path.name}.", "suffix": UNFINISHED}
    with tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True, **name) as folder:
        unfinished = Path(folder) / path.name
        yield unfinished
        put_in_place(unfinished, path, durable=durable)


def put_in_place(unfinished: Path, path: Path, *, durable: bool = False) -> None:
    """Renames a finished file or folder to `path`, replacing what is there; for what several processes wrote.

    A folder cannot replace another in one step: the old one is first renamed to `.NAME.replaced`, from where
    [`recover`] takes it if the process is killed in between.
    """
    written = [unfinished, *unfinished.rglob("*")]
    _open_by_umask([entry for entry in written if entry.is_file()], beside=unfinished.parent)
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


def _open_by_umask(files: list[Path], beside: Path) -> None:
    """Gives files that only their owner may read, as safetensors writes them, the mode of other new files."""
    private = [file for file in files if file.stat().st_mode & 0o777 == 0o600]
    if private:
        with tempfile.TemporaryDirectory(dir=beside) as folder:
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
