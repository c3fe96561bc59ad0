"""A gallery's directory: shards of encoded pictures, and a manifest that says which of them count.

    gallery.json                the manifest, written last: a shard that it does not name does not count
    builder.lock                held by the one build that may write
    shards/000003-5f0c2a91/     some hundred pictures, written beside and renamed
        pictures.json           ids and files of the pictures, and what could not be read
        embeddings.safetensors  embeddings (n, D) fp32, id_hashes (n,) and token_checksums (n,) int64
        tokens.safetensors      tokens (n, 1+N, image width), fp16 or fp32; optional
        thumbnails.zip          0.jpg, 1.jpg, ...; optional
        shard.json              the settings, and length and checksum of each file

A shard never changes. Appending adds shards, deleting writes shards anew, and each ends with a new manifest:
who opened the old one goes on reading the shards that it names.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any
from uuid import uuid4

import filelock
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 1
MANIFEST = "gallery.json"
LOCK = "builder.lock"
SHARDS = "shards"
SHARD_NAME = re.compile(r"(\d{6,})-[0-9a-f]{16}")
PICTURES, EMBEDDINGS, TOKENS, THUMBNAILS = (
    "pictures.json",
    "embeddings.safetensors",
    "tokens.safetensors",
    "thumbnails.zip",
)
SHARD = "shard.json"


class GalleryError(RuntimeError):
    """A gallery that cannot be used as asked; the message says why, and the way out."""


@dataclass(frozen=True)
class GallerySettings:
    """What all shards of a gallery share.

    Attributes:
        model_fingerprint: of the model that encoded it.
        tokens: "float16" or "float32", or None where they are left out.
        thumbnail_size: the longest side in pixels, or None for no thumbnails.
    """

    model_fingerprint: str
    tokens: str | None
    thumbnail_size: int | None

    def check_equal(self, other: "GallerySettings", directory: Path) -> None:
        """Raises GalleryError, naming what differs from `other`, that of the gallery in `directory`."""
        if self.model_fingerprint != other.model_fingerprint:
            raise GalleryError(
                f"the gallery {directory} was made by the model {other.model_fingerprint}, and this one is "
                f"{self.model_fingerprint}: use that model, or build another gallery with this one"
            )
        for name in ("tokens", "thumbnail_size"):
            own, there = getattr(self, name), getattr(other, name)
            if own != there:
                raise GalleryError(
                    f"the gallery {directory} was begun with {name}={there}, and {name}={own} was asked for: "
                    "use the same, or build another gallery"
                )


@dataclass(frozen=True)
class ShardRow:
    """An encoded picture on its way into a shard.

    Attributes:
        embedding: (D,) fp32.
        tokens: (1+N, image width) in the gallery's type, or None.
        root, path: its file, or None.
        thumbnail: JPEG, or None.
    """

    id: str
    embedding: Tensor
    tokens: Tensor | None
    root: str | None
    path: str | None
    thumbnail: bytes | None


def id_hash(picture_id: str) -> int:
    """The first 8 bytes of the id's blake2b as int64 of the same order."""
    return int.from_bytes(hashlib.blake2b(picture_id.encode()).digest()[:8], "big") - 2**63


def shard_name(number: int, ids: Sequence[str]) -> str:
    """Of the shard at `number` that was to hold pictures of these ids."""
    digest = hashlib.blake2b(json.dumps(list(ids)).encode(), digest_size=8)
    return f"{number:06d}-{digest.hexdigest()}"


def shard_number(name: str) -> int:
    return int(SHARD_NAME.fullmatch(name)[1])


# Writing


@contextmanager
def builder_lock(directory: Path) -> Iterator[None]:
    """Holds the right to write into `directory`, which is made if need be.

    The operating system gives the lock back when its process ends, however it ends.

    Raises:
        GalleryError: another build holds it, or the directory cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(directory / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise GalleryError(
            f"another process is writing to the gallery {directory}: wait for its end"
        ) from None
    except OSError as error:
        raise GalleryError(f"the gallery {directory} cannot be written to ({error})") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def explained_write_errors(directory: Path) -> Iterator[None]:
    """Turns a failed write, such as that of a full disk, into a GalleryError that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        remedy = "the disk is full: make room" if full else "repair this"
        raise GalleryError(
            f"could not write to the gallery {directory} ({error}). What is there is whole; {remedy}, then "
            "do the same again and it goes on from there"
        ) from error


def write_shard(
    directory: Path,
    name: str,
    settings: GallerySettings,
    rows: Sequence[ShardRow],
    unreadable: dict[str, str],
) -> None:
    """Writes the shard `name` in full, or not at all.

    Args:
        unreadable: by id, why a picture that belongs here could not be read.
    """
    partial = directory / SHARDS / f".{name}.partial"
    target = directory / SHARDS / name
    shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
    try:
        partial.mkdir(parents=True)
        pictures = {
            "pictures": [{"id": row.id, "root": row.root, "path": row.path} for row in rows],
            "unreadable": unreadable,
        }
        (partial / PICTURES).write_text(json.dumps(pictures, indent=0) + "\n", encoding="utf-8")
        if rows:
            _write_tensors(partial, rows, settings)
        if rows and settings.thumbnail_size is not None:
            with zipfile.ZipFile(partial / THUMBNAILS, "w") as archive:
                for number, row in enumerate(rows):
                    # A fixed date, so that equal pictures make equal files.
                    archive.writestr(zipfile.ZipInfo(f"{number}.jpg"), row.thumbnail)
        files = {
            path.name: {"bytes": path.stat().st_size, "blake2b": file_checksum(path)}
            for path in sorted(partial.iterdir())
        }
        content = {"settings": asdict(settings), "rows": len(rows), "files": files}
        (partial / SHARD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for path in (*partial.iterdir(), partial):
            _flush(path)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_tensors(partial: Path, rows: Sequence[ShardRow], settings: GallerySettings) -> None:
    tensors = {
        "embeddings": torch.stack([row.embedding for row in rows]),
        "id_hashes": torch.tensor([id_hash(row.id) for row in rows]),
    }
    if settings.tokens is not None:
        tokens = torch.stack([row.tokens for row in rows])  # (n, 1+N, image width)
        tensors["token_checksums"] = torch.tensor([zlib.crc32(row.tokens.numpy()) for row in rows])
        save_file({"tokens": tokens}, partial / TOKENS)
    save_file(tensors, partial / EMBEDDINGS)


def file_checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _flush(path: Path) -> None:
    """Leaves nothing of a file or folder in the system's memory alone, where a power cut would lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_beside(path: Path, content: str) -> None:
    """Replaces a text file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    _flush(partial)
    os.replace(partial, path)


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none.

    Raises:
        GalleryError: it is damaged, or of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        if found == FORMAT:
            manifest["settings"] = GallerySettings(**manifest["settings"])
            for shard in manifest["shards"]:
                shard_number(shard["name"])
                if not {*shard["files"]} <= {PICTURES, EMBEDDINGS, TOKENS, THUMBNAILS}:
                    raise ValueError(f"shard {shard['name']} names files that do not belong there")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise GalleryError(
            f"{path} is damaged ({error!r}): restore it, or build the gallery again"
        ) from error
    if found != FORMAT:
        raise GalleryError(
            f"{path} is of format {found}, and this code reads {FORMAT}: build the gallery again"
        )
    return manifest


def new_manifest(settings: GallerySettings) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": uuid4().hex,
        "settings": settings,
        "next_shard": 0,
        "shards": [],
        "unreadable": {},
    }


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    content = manifest | {"settings": asdict(manifest["settings"])}
    write_beside(directory / MANIFEST, json.dumps(content, indent=1) + "\n")


def unlisted_shards(directory: Path, manifest: dict[str, Any]) -> list[str]:
    """Whole shards that a build finished before it was killed, in order. Removes other leftovers.

    The caller holds the lock.
    """
    listed = {shard["name"] for shard in manifest["shards"]}
    finished = []
    for path in (directory / SHARDS).glob("*"):
        if SHARD_NAME.fullmatch(path.name) and path.name not in listed:
            if shard_number(path.name) >= manifest["next_shard"]:
                finished.append(path.name)
            else:  # a deletion was killed before or after it had written the manifest
                shutil.rmtree(path)
        elif path.name.endswith(".partial"):
            shutil.rmtree(path)
    return sorted(finished, key=lambda name: (shard_number(name), name))


def read_shard(directory: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What shard.json and pictures.json of a shard say."""
    folder = directory / SHARDS / name
    try:
        contents = [json.loads((folder / file).read_text(encoding="utf-8")) for file in (SHARD, PICTURES)]
        return contents[0] | {"settings": GallerySettings(**contents[0]["settings"])}, contents[1]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{folder} is damaged ({error!r}): remove it, and build again") from error


def list_shards(directory: Path, manifest: dict[str, Any], names: Sequence[str]) -> None:
    """Enters finished shards into the manifest, and writes it: the last step of a build."""
    for name in names:
        shard, pictures = read_shard(directory, name)
        manifest["unreadable"] |= pictures["unreadable"]
        for picture in pictures["pictures"]:
            manifest["unreadable"].pop(picture["id"], None)  # an earlier build could not read it
        if shard["rows"]:
            manifest["shards"].append({"name": name, "rows": shard["rows"], "files": shard["files"]})
    if names:
        manifest["next_shard"] = max(map(shard_number, names)) + 1
    write_manifest(directory, manifest)


def delete_pictures(directory: Path, ids: Collection[str]) -> None:
    """Removes pictures for good: what was computed from them is no longer in any file.

    The shards that held them are written anew without them. A gallery opened before can no longer read
    those shards' tokens, and says so.

    Raises:
        KeyError: a picture is not there; then none is removed.
        GalleryError: the gallery is damaged or cannot be written to.
    """
    with builder_lock(directory), explained_write_errors(directory):
        stored = StoredGallery(directory)
        manifest = stored.manifest
        unlisted_shards(directory, manifest)  # a killed deletion's leftovers would be in the way
        rows = set(stored.rows_of(ids))
        replaced = []
        for number, shard in enumerate(manifest["shards"]):
            first = stored.starts[number]
            kept = [row for row in range(first, first + shard["rows"]) if row not in rows]
            if len(kept) == shard["rows"]:
                continue
            replaced.append(shard["name"])
            shard["rows"] = len(kept)
            if kept:
                content = [stored.shard_row(row) for row in kept]
                shard["name"] = shard_name(shard_number(shard["name"]), [row.id for row in content])
                write_shard(directory, shard["name"], stored.settings, content, {})
                shard["files"] = read_shard(directory, shard["name"])[0]["files"]
        manifest["shards"] = [shard for shard in manifest["shards"] if shard["rows"]]
        write_manifest(directory, manifest)
        for name in replaced:
            shutil.rmtree(directory / SHARDS / name)


# Reading


class StoredGallery:
    """The gallery in a directory as its manifest is now; arrays are mapped, not read.

    Raises:
        FileNotFoundError: there is none.
        GalleryError: it is not finished, or damaged.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        manifest = read_manifest(self.directory)
        if manifest is None:
            if (self.directory / SHARDS).is_dir():
                raise GalleryError(
                    f"the gallery {self.directory} is not finished: do the same build again, it goes on "
                    "where it was stopped"
                )
            raise FileNotFoundError(f"{self.directory} is no gallery: there is no {MANIFEST} in it")
        self.manifest = manifest
        self.settings: GallerySettings = manifest["settings"]
        self.shards: list[dict[str, Any]] = manifest["shards"]
        self.starts = [0, *accumulate(shard["rows"] for shard in self.shards)]
        for shard in self.shards:
            self._check_lengths(shard)
        arrays = [self._map(shard, EMBEDDINGS) for shard in self.shards]
        self._embeddings = [tensors["embeddings"] for tensors in arrays]
        self._id_hashes = [tensors["id_hashes"] for tensors in arrays]
        self._token_checksums = [tensors.get("token_checksums") for tensors in arrays]
        self._records = lru_cache(maxsize=256)(self._read_records)
        self._tokens = lru_cache(maxsize=1)(self._map_tokens)  # more would keep more of the disk in memory

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def state(self) -> str:
        """16 hexadecimal digits that stand for the pictures and their order."""
        names = "\n".join(shard["name"] for shard in self.shards)
        return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()

    @property
    def size_on_disk(self) -> int:
        """Bytes of all shards."""
        return sum(file["bytes"] for shard in self.shards for file in shard["files"].values())

    @cached_property
    def embeddings(self) -> list[Tensor]:
        """Each shard's embeddings (n, D) fp32, mapped. The first use reads all once to check them."""
        for shard in self.shards:
            self._check_content(shard, EMBEDDINGS)
        return self._embeddings

    @cached_property
    def id_hashes(self) -> Tensor:
        """(G,) int64, `id_hash` of each picture."""
        return torch.cat(self._id_hashes) if self._id_hashes else torch.empty(0, dtype=torch.long)

    def ids(self) -> Iterator[str]:
        """Every picture's id, in the order of the rows."""
        for number in range(len(self.shards)):
            for record in self._records(number):
                yield record["id"]

    def record(self, row: int) -> dict[str, str | None]:
        """A picture's `id`, `root` and `path`."""
        number, place = self._locate(row)
        return self._records(number)[place]

    def rows_of(self, ids: Collection[str]) -> list[int]:
        """The rows of pictures by their ids.

        Raises:
            KeyError: naming those that are not there.
        """
        hashes, order = self.sorted_hashes
        places = torch.searchsorted(hashes, torch.tensor([id_hash(name) for name in ids], dtype=torch.long))
        rows, missing = [], []
        for name, place in zip(ids, places.tolist(), strict=True):
            row = int(order[place]) if place < len(self) else None
            if row is not None and self.record(row)["id"] == name:
                rows.append(row)
            else:
                missing.append(name)
        if missing:
            raise KeyError(f"the gallery {self.directory} has no pictures {missing[:10]}")
        return rows

    @cached_property
    def sorted_hashes(self) -> tuple[Tensor, Tensor]:
        """The id hashes in ascending order and their rows, (G,) both."""
        return self.id_hashes.sort()

    def tokens(self, row: int) -> np.ndarray:
        """A picture's image tokens (1+N, image width), checked against their checksum."""
        number, place = self._locate(row)
        tokens = self._tokens(number)[place].numpy()
        if zlib.crc32(tokens) != int(self._token_checksums[number][place]):
            raise self._damaged(
                self.shards[number], TOKENS, f"picture {self.record(row)['id']!r} was altered"
            )
        return tokens

    @property
    def tokens_shape(self) -> tuple[int, ...]:
        """(G, 1+N, image width)."""
        return (len(self), *self._tokens(0).shape[1:])

    def thumbnail(self, row: int) -> bytes | None:
        """JPEG, or None for a gallery without."""
        if self.settings.thumbnail_size is None:
            return None
        number, place = self._locate(row)
        shard = self.shards[number]
        try:
            with zipfile.ZipFile(self._path(shard, THUMBNAILS)) as archive:
                return archive.read(f"{place}.jpg")
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise self._damaged(shard, THUMBNAILS, error) from error

    def embedding_rows(self, rows: Tensor) -> Tensor:
        """Embeddings (n, D) of the rows (n,)."""
        return gather_rows(self._embeddings, self.starts, rows)

    def shard_row(self, row: int) -> ShardRow:
        """Everything about a picture, for a shard that is written anew."""
        record = self.record(row)
        tokens = None if self.settings.tokens is None else torch.from_numpy(self.tokens(row).copy())
        number, place = self._locate(row)
        return ShardRow(
            id=record["id"],
            embedding=self.embeddings[number][place],
            tokens=tokens,
            root=record["root"],
            path=record["path"],
            thumbnail=self.thumbnail(row),
        )

    def verify(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
            GalleryError: naming the first that differs.
        """
        for shard in self.shards:
            for file in shard["files"]:
                self._check_content(shard, file)

    def _locate(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a gallery of {len(self)} pictures")
        number = bisect_right(self.starts, row) - 1
        return number, row - self.starts[number]

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
        # A deletion replaces shards under a gallery that was opened before.
        now = read_manifest(self.directory)
        if now is not None and shard["name"] not in {listed["name"] for listed in now["shards"]}:
            return GalleryError(f"pictures of the gallery {self.directory} were deleted: open it again")
        return GalleryError(
            f"{self._path(shard, file)} is damaged ({reason}): restore this file, or build the gallery again"
        )

    def _map(self, shard: dict[str, Any], file: str) -> dict[str, Tensor]:
        # safetensors maps the file and keeps no descriptor, so a gallery may have thousands of shards.
        try:
            with safe_open(self._path(shard, file), "pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise self._damaged(shard, file, error) from error

    def _map_tokens(self, number: int) -> Tensor:
        return self._map(self.shards[number], TOKENS)["tokens"]

    def _read_records(self, number: int) -> list[dict[str, str | None]]:
        shard = self.shards[number]
        self._check_content(shard, PICTURES)
        return json.loads(self._path(shard, PICTURES).read_text(encoding="utf-8"))["pictures"]


def gather_rows(segments: Sequence[Tensor], starts: Sequence[int], rows: Tensor) -> Tensor:
    """Rows (n,) of the matrix whose parts, beginning at `starts`, are `segments`: (n, D)."""
    order = rows.argsort()
    ascending = rows[order]
    ends = torch.searchsorted(ascending, torch.tensor(starts)).tolist()  # of each segment's share
    gathered = torch.empty(len(rows), segments[0].shape[1], dtype=segments[0].dtype)
    for segment, start, first, last in zip(segments, starts, ends, ends[1:], strict=False):
        if first < last:
            gathered[order[first:last]] = segment[ascending[first:last] - start]
    return gathered


def jpeg_thumbnail(image: Any, size: int) -> bytes:
    """A picture within `size` x `size` pixels as JPEG; the picture itself stays as it is."""
    small = image.copy()
    small.thumbnail((size, size))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()
