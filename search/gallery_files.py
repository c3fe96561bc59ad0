"""The files of a gallery as its manifest lists them; what is inside them is for `stored_gallery`."""

import hashlib
import os
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..data.whole_files import denial, file_checksum, is_denied
from ..models.model_source import ModelSource
from .manifest import (
    FAISS_INDEX,
    MANIFEST,
    SHARDS,
    GalleryChangedError,
    GalleryError,
    GallerySettings,
    read_manifest,
)

OPENINGS = 5  # times that a gallery is read anew which others change meanwhile


class GalleryFiles:
    """The gallery in a directory as its manifest is now; of the other files only the lengths are looked at.

    It needs no torch, so it is there at once.

    Attributes:
        starts: the first row of each shard, and the number of images at the end.
        model_source: what the model that made it was loaded from; None where nothing says so, as in galleries
            of early versions. It may come from a stranger: see `is_on_this_machine`.

    Raises:
        FileNotFoundError: there is no gallery.
        GalleryError: it is not finished, or a file is missing, of another length or not to be read.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        for left in reversed(range(OPENINGS)):  # a deletion may come between the manifest and the shards
            try:
                self._open()
                return
            except GalleryChangedError:
                if not left:
                    raise

    @property
    def has_moments(self) -> bool:
        """Whether images of it were cut from films."""
        return any(shard.get("moments") for shard in self.shards)

    def _open(self) -> None:
        self.file_state = self.current_file_state()  # before it is read: a later one is then noticed
        manifest = read_manifest(self.directory)
        if manifest is None:
            if (self.directory / SHARDS).is_dir():
                raise GalleryError(
                    f"the gallery {self.directory} is not finished: do the same build again, it goes on "
                    "where it was stopped"
                )
            raise FileNotFoundError(
                f"{self.directory} is no gallery: no {MANIFEST} is in it, as `tpas gallery build` makes one"
            )
        self.manifest = manifest
        self.settings: GallerySettings = manifest["settings"]
        self.model_source: ModelSource | None = manifest["model"]
        self.shards: list[dict[str, Any]] = manifest["shards"]
        self.starts = [0, *accumulate(shard["rows"] for shard in self.shards)]
        for shard in self.shards:
            self._check_lengths(shard)

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def state(self) -> str:
        """16 hexadecimal digits that stand for the images and their order."""
        names = "\n".join(shard["name"] for shard in self.shards)
        return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()

    @property
    def size_on_disk(self) -> int:
        """Bytes of all shards."""
        return sum(file["bytes"] for shard in self.shards for file in shard["files"].values())

    @property
    def unreadable(self) -> dict[str, str]:
        """By id, why an image that was to be encoded is not in the gallery."""
        return dict(self.manifest["unreadable"])

    @property
    def has_faiss_index(self) -> bool:
        return (self.directory / FAISS_INDEX).is_file()

    def current_file_state(self) -> tuple[int, ...] | None:
        """What tells the manifest's file on the disk from the one that was read; None where there is none."""
        try:
            state = (self.directory / MANIFEST).stat()
        except OSError:
            return None
        return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns

    def check_unchanged(self) -> None:
        """Raises GalleryError if the gallery was appended to, or deleted from, since it was opened."""
        now = read_manifest(self.directory)
        if now is None or [shard["name"] for shard in now["shards"]] != [s["name"] for s in self.shards]:
            raise GalleryChangedError(
                f"the gallery {self.directory} was changed since it was opened: open it again"
            )

    def verify(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
            GalleryError: naming the first that differs.
        """
        for shard in self.shards:
            for file in shard["files"]:
                self._check_content(shard, file)

    def _path(self, shard: dict[str, Any], file: str) -> Path:
        return self.directory / SHARDS / shard["name"] / file

    def _check_lengths(self, shard: dict[str, Any]) -> None:
        for file, expected in shard["files"].items():
            try:
                length = self._path(shard, file).stat().st_size
            except OSError as error:
                raise self._damaged(shard, file, error) from error
            if length != expected["bytes"]:
                raise self._damaged(shard, file, f"it has {length} bytes instead of {expected['bytes']}")

    def _check_content(self, shard: dict[str, Any], file: str) -> None:
        try:
            checksum = file_checksum(self._path(shard, file))
        except OSError as error:
            raise self._damaged(shard, file, error) from error
        if checksum != shard["files"][file]["blake2b"]:
            raise self._damaged(shard, file, "its checksum differs from the manifest's")

    def _damaged(self, shard: dict[str, Any], file: str, reason: object) -> GalleryError:
        if is_denied(self._path(shard, file)):
            return GalleryError(f"the gallery {denial(self.directory)}")
        # A deletion replaces shards under a gallery that was opened before.
        now = read_manifest(self.directory)
        if now is None or now["name"] != self.manifest["name"]:
            return GalleryChangedError(f"the gallery {self.directory} was replaced: open it again")
        if shard["name"] not in {listed["name"] for listed in now["shards"]}:
            return GalleryChangedError(f"images of the gallery {self.directory} were deleted: open it again")
        return GalleryError(
            f"{self._path(shard, file)} is damaged ({reason}): restore this file, or build the gallery again"
        )


def place_of_gallery(folder: Path) -> Path:
    """Where the galleries of a folder's images are kept."""
    folder = Path(os.path.realpath(folder))
    beside = folder.with_name(f"{folder.name}.gallery") if folder.name else None
    if beside is not None and os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tpas" / f"{folder.name}-{blake2b(os.fsencode(folder), digest_size=8).hexdigest()}"


def galleries_of_folder(folder: Path) -> list[GalleryFiles]:
    """The galleries that a folder's images are in already, of those that name their model."""
    manifests = sorted(place_of_gallery(folder).glob(f"*/{MANIFEST}"))
    return [found for found in map(GalleryFiles, (each.parent for each in manifests)) if found.model_source]
