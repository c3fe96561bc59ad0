"""Files that are whole or not there: written beside, then renamed."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


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


def write_json(path: Path, content: Any) -> None:
    """Writes beside and renames: the file is whole or is not there."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    write_beside(path, lambda file: file.write(text.encode()))


def write_beside(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Lets `write` fill a file beside, of this call alone, and renames it; if that fails, nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder) / path.name
        with unfinished.open("wb") as file:
            write(file)
        os.replace(unfinished, path)
