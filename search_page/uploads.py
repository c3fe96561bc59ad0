"""What visitors upload, until it is read: files in a folder of the server's own, known outside by tokens."""

import secrets
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

NAME_BYTES = 100  # of a file's name that is kept
NAMELESS = "image"
LEFTOVERS_SECONDS = 600.0  # after which a file that was uploaded, but never asked about, is removed
VISITORS = 8  # who may each have as much waiting as one may


class NoRoomError(RuntimeError):
    """More is waiting to be read than may be."""


@dataclass(frozen=True)
class _Upload:
    path: Path
    client: str
    size: int
    since: float


class Uploads:
    """A token stands for a file, and is told only to who sent it: no request can name a file by its path.

    Args:
        folder: for these files alone.
        most_bytes: that one client may have waiting; all together have `VISITORS` times as much.
    """

    def __init__(self, folder: Path, most_bytes: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._waiting: dict[str, _Upload] = {}

    def check_room(self, client: str, size: int, of_others: int = 0) -> None:
        """Raises NoRoomError where `size` more bytes of a client would be too many, with those that come from
        others meanwhile."""
        self._remove_leftovers()
        with self._lock:
            own = sum(upload.size for upload in self._waiting.values() if upload.client == client)
            every = sum(upload.size for upload in self._waiting.values())
        if own + size > self.most_bytes or every + size + of_others > VISITORS * self.most_bytes:
            raise NoRoomError("too many files wait to be read")

    def add(self, client: str, name: str, content: BinaryIO, size: int) -> str:
        """Keeps a file, and returns its token."""
        token = secrets.token_urlsafe(24)
        path = self.folder / token / _file_name(name)
        path.parent.mkdir()
        with path.open("wb") as file:
            shutil.copyfileobj(content, file)
        with self._lock:
            self._waiting[token] = _Upload(path, client, size, time.monotonic())
        return token

    def knows(self, token: str, client: str) -> bool:
        """Whether a client's file waits under a token."""
        with self._lock:
            upload = self._waiting.get(token)
        return upload is not None and upload.client == client

    def take(self, token: str) -> Path | None:
        """The file of a token, which is worth nothing from then on; `remove` it when it is read."""
        with self._lock:
            upload = self._waiting.pop(token, None)
        return None if upload is None else upload.path

    def remove(self, path: Path) -> None:
        """Deletes a file that was taken."""
        shutil.rmtree(path.parent, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        oldest = time.monotonic() - LEFTOVERS_SECONDS
        with self._lock:
            left = [token for token, upload in self._waiting.items() if upload.since < oldest]
        for token in left:
            if path := self.take(token):
                self.remove(path)


def _file_name(given: str) -> str:
    """A name to show that is a file's name on any system."""
    name = PurePosixPath(given.replace("\\", "/")).name
    name = "".join(char for char in name if char.isprintable())
    kept = name.encode("utf-8", "ignore")[-NAME_BYTES:].decode("utf-8", "ignore")  # its end says the kind
    return NAMELESS if kept.strip(". ") == "" else kept
