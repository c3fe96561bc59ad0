"""The keys of those who may ask: 256 bits drawn at random, of which a file keeps a hash and no more.

A plain hash is enough of what nobody can guess; slow ones are for passwords, which people choose.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from ..data.whole_files import held_alone, write_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
PREFIX = "tpas_"
MOST_BYTES = 2**24  # of a file of keys


@dataclass(frozen=True)
class Key:
    """What is known of a key.

    Attributes:
        name: of who has it, as logs say it.
        sha256: of the key itself.
        made: the day.
        galleries: the names of those that it opens; None: all.
    """

    name: str
    sha256: str
    made: str
    galleries: tuple[str, ...] | None = None

    def opens(self, gallery: str) -> bool:
        return self.galleries is None or gallery in self.galleries


class Keys:
    """Those of a file, as it is at each question: what is revoked opens nothing from then on.

    Raises:
        ValueError, OSError: as `read_keys`.
    """

    def __init__(self, file: Path):
        self.file = file
        self._by_hash = {key.sha256: key for key in read_keys(file)}
        self._state: tuple[int, int, int] | None = None  # as which the first question finds it

    def key_of(self, secret: str) -> Key | None:
        """None of what is no key; raises as `read_keys` where the file cannot be read any more."""
        state = _state(self.file)
        if state != self._state:
            self._by_hash = {key.sha256: key for key in read_keys(self.file)}
            self._state = state
        return self._by_hash.get(_hash(secret))


def read_keys(file: Path) -> list[Key]:
    """Raises OSError or ValueError, with the file's name, where it cannot be read or holds something else."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file: `tpas serve key add NAME --keys {file}` makes it")
    if not file.is_file():
        raise ValueError(f"{file}: this is no file")
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file}: a file of keys has {MOST_BYTES >> 20} MiB at most")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["keys"]
        keys = [
            Key(
                str(entry["name"]),
                str(entry["sha256"]),
                str(entry["made"]),
                None if entry["galleries"] is None else tuple(map(str, entry["galleries"])),
            )
            for entry in entries
        ]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file}: this is no file of keys: `tpas serve key add` writes one") from error
    return keys


def add_key(file: Path, name: str, galleries: Sequence[str] | None = None) -> str:
    """Adds a key to the file, which is made if need be, and returns it: it is kept nowhere.

    Raises:
        ValueError: the name is none, or taken.
        AlreadyHeldError, OSError: the file is being written, or cannot be.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"a key's name has 1 to 64 letters, digits, or . _ @ -, got {name!r}")
    with held_alone(_lock(file), wait=10.0):
        keys = read_keys(file) if file.exists() else []
        if any(key.name == name for key in keys):
            raise ValueError(f"{file}: there is a key {name} already: revoke it, or take another name")
        secret = PREFIX + secrets.token_urlsafe(32)
        opened = None if galleries is None else tuple(galleries)
        _write(file, [*keys, Key(name, _hash(secret), date.today().isoformat(), opened)])
    return secret


def revoke_key(file: Path, name: str) -> None:
    """Raises ValueError where there is no such key; otherwise as `add_key`."""
    with held_alone(_lock(file), wait=10.0):
        keys = read_keys(file)
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise ValueError(f"{file}: there is no key {name}")
        _write(file, left)


def _write(file: Path, keys: Sequence[Key]) -> None:
    write_json(file, {"keys": [asdict(key) for key in keys]}, durable=True, private=True)


def _lock(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.with_name(f".{file.name}.lock")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "backslashreplace")).hexdigest()


def _state(file: Path) -> tuple[int, int, int]:
    found = os.stat(file)
    return found.st_ino, found.st_mtime_ns, found.st_size
