"""Reads a gallery's directory, and deletes from it. See [`tpas.search.manifest`]."""

import errno
import os
import shutil
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..data.annotation_fields import LONGEST_PATH
from ..data.image_files import load_inside
from ..data.json_records import read_json
from ..data.moments import Moment
from .columns import COLUMNS, Columns, Source, read_columns, write_columns
from .gallery_files import GalleryFiles
from .manifest import (
    EMBEDDINGS,
    FAISS_DESCRIPTION,
    FAISS_INDEX,
    FOOTAGE,
    IMAGES,
    SHARDS,
    THUMBNAILS,
    TOKENS,
    GalleryError,
    builder_lock,
    explained_write_errors,
    shard_number,
    write_manifest,
)
from .shards import ShardRow, id_hash, read_shard, shard_name, unlisted_shards, write_shard

LARGEST_THUMBNAIL = 2**26  # bytes, once unpacked


class Record(TypedDict):
    """An image of a gallery; its file is `root`/`path`, both None of an image that was no file.

    `content` and `state` are as in `ShardRow`; galleries of early versions lack both. Only what was cut from
    a film has a `moment`.
    """

    id: str
    root: str | None
    path: str | None
    content: NotRequired[str]
    state: NotRequired[list[int]]
    moment: NotRequired[dict[str, Any]]  # of `Moment.to_record`


class StoredGallery(GalleryFiles):
    """A gallery's arrays and records; arrays are mapped, not read.

    Attributes:
        mapped_embeddings: each shard's embeddings (n, D) fp32, not checked; see `check_rows`.

    Raises:
        FileNotFoundError: there is none.
        GalleryError: it is not finished, damaged, or has more shards than the system maps.
    """

    def _open(self) -> None:
        super()._open()
        types = {"embeddings": torch.float32, "id_hashes": torch.int64}
        if self.settings.tokens is not None:
            types["token_checksums"] = torch.int64
        arrays = [self._map(shard, EMBEDDINGS, types) for shard in self.shards]
        self.mapped_embeddings = [tensors["embeddings"] for tensors in arrays]
        for shard, own in zip(self.shards, self.mapped_embeddings, strict=True):
            if own.dim() != 2 or own.shape[1] != self.mapped_embeddings[0].shape[1]:
                raise self._damaged(shard, EMBEDDINGS, f"embeddings of shape {tuple(own.shape)}")
        self._checked: set[int] = set()  # shards whose embeddings agree with their checksum
        self._id_hashes = [tensors["id_hashes"] for tensors in arrays]
        self._token_checksums = [tensors.get("token_checksums") for tensors in arrays]
        self._records = lru_cache(maxsize=256)(self._read_records)
        self._tokens = lru_cache(maxsize=1)(self._map_tokens)  # more would keep more of the disk in memory

    @cached_property
    def embeddings(self) -> list[Tensor]:
        """Each shard's embeddings (n, D) fp32, mapped. The first use reads all once to check them."""
        self.check_all_rows()
        return self.mapped_embeddings

    def check_all_rows(self) -> None:
        """As `check_rows` of every row."""
        self._check_embeddings(range(len(self.shards)))

    def check_rows(self, rows: Tensor) -> None:
        """Compares the embeddings of the shards that hold rows (n,) with their checksums, each shard once.

        Raises:
            GalleryError: naming the first that differs.
        """
        numbers = torch.searchsorted(torch.tensor(self.starts), rows, right=True) - 1
        self._check_embeddings(numbers.unique().tolist())

    @cached_property
    def id_hashes(self) -> Tensor:
        """(G,) int64, `id_hash` of each image."""
        return torch.cat(self._id_hashes) if self._id_hashes else torch.empty(0, dtype=torch.long)

    @cached_property
    def columns(self) -> Columns:
        """What filters look at, of every row.

        Where they are missing, or older, they are made from the records, and kept if this user may write.
        """
        kept = read_columns(self.directory)
        columns = self._columns_by(kept)
        if kept is None or columns is not kept[0]:
            # Lest a deletion should come in between; a build may take hours, and keeps them itself.
            with suppress(GalleryError), builder_lock(self.directory, wait=0):
                self.check_unchanged()
                self._keep(columns)
        return columns

    def renew_columns(self, kept: tuple[Columns, list[Source]] | None) -> None:
        """Keeps the columns for who opens the gallery next; the caller holds its lock.

        Args:
            kept: those of an earlier change, as `read_columns` gives them: only what is new is then read.
        """
        with suppress(GalleryError):  # of damaged records, which whoever needs them hears of
            columns = self._columns_by(kept)
            if kept is None or columns is not kept[0]:
                self._keep(columns)

    def _keep(self, columns: Columns) -> None:
        with suppress(OSError, SafetensorError):  # they can be made again
            write_columns(self.directory, columns, self._sources)

    @property
    def _sources(self) -> list[Source]:
        return [
            (f"{shard['name']} {shard['files'][IMAGES]['blake2b']}", shard["rows"]) for shard in self.shards
        ]

    def _columns_by(self, kept: tuple[Columns, list[Source]] | None) -> Columns:
        """The `kept` ones, where they are of these shards; else of what they lack the records are read."""
        before, sources = kept or (Columns.of_records([]), [])
        if sources == self._sources:
            return before
        starts = dict(zip(sources, accumulate((rows for _, rows in sources), initial=0), strict=False))
        parts = []
        for number, source in enumerate(self._sources):
            if source in starts:
                parts.append(before.part(starts[source], starts[source] + source[1]))
            else:
                parts.append(Columns.of_records(self._read_checked_records(number)))
        return Columns.joined(parts)

    def ids(self) -> Iterator[str]:
        """Every image's id, in the order of the rows."""
        return self.columns.ids()

    def records(self) -> Iterator[Record]:
        """Every image's record, in the order of the rows."""
        return map(self.record, range(len(self)))

    def record(self, row: int) -> Record:
        """An image's `id`, `root` and `path`."""
        number, place = self._locate(row)
        return self._checked_record(number, self._records(number)[place])

    def moment(self, row: int) -> Moment | None:
        """Where in a film an image was seen; None of what is of no film."""
        record = self.record(row).get("moment")
        return None if record is None else Moment.from_record(record)

    def moments(self) -> Iterator[tuple[int, Moment]]:
        """The rows of images that were cut from films, with their moments, in the order of the rows."""
        for first, shard in zip(self.starts, self.shards, strict=False):
            for row in range(first, first + shard["rows"]) if shard.get("moments") else ():
                moment = self.moment(row)
                if moment is not None:
                    yield row, moment

    @cached_property
    def visits(self) -> Tensor | None:
        """(G,) of each row the first row of the same visit, or itself; None where nothing is of a film."""
        return torch.from_numpy(self.columns.visits) if self.has_moments else None

    def root_of(self, row: int, images_root: str | None = None) -> str | None:
        """The folder in which an image's `path` lies; None of what was no file.

        Args:
            images_root: where the images lie now, if they were moved. What was cut from a film lies in the
                gallery, wherever that is.
        """
        record = self.record(row)
        return record["root"] if "moment" in record else images_root or record["root"]

    def open_file(
        self,
        row: int,
        images_root: str | None = None,
        follow_links: bool = True,
        edge: int | None = None,
    ) -> Image.Image:
        """The image itself, not its thumbnail.

        Args:
            images_root: see `root_of`.
            follow_links: see `file_inside`.
            edge: see `load_image`.

        Raises:
            FileNotFoundError: it was no file, or is gone.
            ValueError, PermissionError: it cannot be read.
        """
        record, root = self.record(row), self.root_of(row, images_root)
        if root is None or record["path"] is None:
            raise FileNotFoundError(f"image {record['id']!r} of {self.directory} was no file")
        return load_inside(root, record["path"], follow_links, edge)

    def rows_of(self, ids: Collection[str]) -> list[int]:
        """The rows of images by their ids.

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
            raise KeyError(f"the gallery {self.directory} has no images {missing[:10]}")
        return rows

    @cached_property
    def sorted_hashes(self) -> tuple[Tensor, Tensor]:
        """The id hashes in ascending order and their rows, (G,) both."""
        return self.id_hashes.sort()

    def tokens(self, row: int) -> np.ndarray:
        """An image's image tokens (1+N, image width), checked against their checksum."""
        number, place = self._locate(row)
        tokens = self._tokens(number)[place].numpy()
        checksums = self._token_checksums[number]
        assert checksums is not None, "checked where the gallery was opened"
        if zlib.crc32(tokens.data) != int(checksums[place]):
            raise self._damaged(self.shards[number], TOKENS, f"image {self.record(row)['id']!r} was altered")
        if not np.isfinite(tokens).all():
            raise self._damaged(
                self.shards[number], TOKENS, f"image {self.record(row)['id']!r} is not finite"
            )
        return tokens

    def thumbnail(self, row: int) -> bytes | None:
        """JPEG, or None for a gallery without."""
        if self.settings.thumbnail_size is None:
            return None
        number, place = self._locate(row)
        shard = self.shards[number]
        try:
            with zipfile.ZipFile(self._path(shard, THUMBNAILS)) as archive:
                entry = archive.getinfo(f"{place}.jpg")
                if entry.file_size > LARGEST_THUMBNAIL:
                    raise ValueError(f"{entry.filename} unpacks to {entry.file_size:,} bytes")
                return archive.read(entry)
        except Exception as error:  # from a damaged archive zipfile raises almost anything
            raise self._damaged(shard, THUMBNAILS, repr(error)) from error

    def embedding_rows(self, rows: Tensor) -> Tensor:
        """Embeddings (n, D) of the rows (n,), checked."""
        self.check_rows(rows)
        return gather_rows(self.mapped_embeddings, self.starts, rows)

    def shard_row(self, row: int) -> ShardRow:
        """Everything about an image, for a shard that is written anew."""
        record = self.record(row)
        tokens = None if self.settings.tokens is None else torch.from_numpy(self.tokens(row).copy())
        number, place = self._locate(row)
        self._check_embeddings([number])
        return ShardRow(
            id=record["id"],
            embedding=self.mapped_embeddings[number][place],
            tokens=tokens,
            root=record["root"],
            path=record["path"],
            thumbnail=self.thumbnail(row),
            content=record.get("content"),
            state=record.get("state"),
            moment=self.moment(row),
        )

    def _locate(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a gallery of {len(self)} images")
        number = bisect_right(self.starts, row) - 1
        return number, row - self.starts[number]

    def _check_embeddings(self, numbers: Iterable[int]) -> None:
        new = [number for number in numbers if number not in self._checked]
        if len(new) == 1:  # as for each of few rows
            self._check_embeddings_of(new[0])
        elif new:
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                list(threads.map(self._check_embeddings_of, new))
        self._checked.update(new)

    def _check_embeddings_of(self, number: int) -> None:
        self._check_content(self.shards[number], EMBEDDINGS)
        own = self.mapped_embeddings[number]
        if own.numel() and not torch.stack(own.aminmax()).isfinite().all():  # one pass, and no mask
            raise self._damaged(self.shards[number], EMBEDDINGS, "an embedding is not finite")

    def _map(self, shard: dict[str, Any], file: str, types: dict[str, torch.dtype]) -> dict[str, Tensor]:
        """The tensors of these names and types, which have a row for each image of the shard."""
        # safetensors maps the file and keeps no descriptor, so a gallery may have thousands of shards.
        try:
            with safe_open(self._path(shard, file), "pt") as tensors:
                mapped = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, RuntimeError) as error:  # the last is torch's, where it cannot map
            if os.strerror(errno.ENOMEM) in str(error):
                raise GalleryError(
                    f"the gallery {self.directory} has {len(self.shards)} shards, and the system maps no "
                    f"more of its files ({error}): build it again with a larger shard_size, or as several "
                    "galleries, or raise the limit (Linux: vm.max_map_count)"
                ) from error
            raise self._damaged(shard, file, error) from error
        for name, dtype in types.items():
            tensor = mapped.get(name)
            if tensor is None or tensor.dtype != dtype or tensor.shape[:1] != (shard["rows"],):
                raise self._damaged(shard, file, f"its {name!r} are not {shard['rows']} rows of {dtype}")
        return mapped

    def _map_tokens(self, number: int) -> Tensor:
        assert self.settings.tokens is not None, "this gallery keeps no tokens"
        types = {"tokens": getattr(torch, self.settings.tokens)}
        tokens = self._map(self.shards[number], TOKENS, types)["tokens"]
        if tokens.dim() != 3:
            raise self._damaged(self.shards[number], TOKENS, f"tokens of shape {tuple(tokens.shape)}")
        return tokens

    def _read_checked_records(self, number: int) -> list[Record]:
        return [self._checked_record(number, record) for record in self._read_records(number)]

    def _checked_record(self, number: int, record: Record) -> Record:
        try:
            _check_record(record)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(self.shards[number], IMAGES, repr(error)) from error
        return record

    def _read_records(self, number: int) -> list[Record]:
        """A shard's, each of which is to be checked before it is used."""
        shard = self.shards[number]
        self._check_content(shard, IMAGES)
        try:
            records = read_json(self._path(shard, IMAGES))["pictures"]
            if not isinstance(records, list) or len(records) != shard["rows"]:
                raise ValueError(f"these are not the records of {shard['rows']} images")
            for record in records:
                if "moment" in record and record["path"] is not None:  # the gallery may have been moved since
                    record["root"] = os.path.realpath(self.directory / FOOTAGE)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(shard, IMAGES, repr(error)) from error
        return records


def _check_record(record: Any) -> None:
    if not isinstance(record["id"], str):
        raise TypeError(f"the id {record['id']!r} is no text")
    if len(record["id"]) > LONGEST_PATH:
        raise ValueError(f"the id {record['id']:.80} has more than {LONGEST_PATH:,} characters")
    if not all(isinstance(record[name], str | None) for name in ("root", "path")):
        raise TypeError(f"the file of {record['id']!r} is no path")
    if "moment" in record:
        Moment.from_record(record["moment"])


def gather_rows(segments: Sequence[Tensor], starts: Sequence[int], rows: Tensor) -> Tensor:
    """Rows (n,) of the matrix whose parts, beginning at `starts`, are `segments`: (n, D)."""
    if len(segments) == 1:
        return segments[0][rows]
    ascending, order = rows.sort()
    if len(rows) and not 0 <= ascending[0] <= ascending[-1] < starts[-1]:
        raise IndexError(f"rows {ascending[0]} to {ascending[-1]} of {starts[-1]}")
    segment = np.searchsorted(starts, ascending.numpy(), side="right") - 1
    firsts = np.flatnonzero(np.diff(segment, prepend=-1))  # of each segment that is asked
    local = ascending.numpy() - np.asarray(starts)[segment]
    found = np.empty((len(rows), segments[0].shape[1]), segments[0].numpy().dtype)
    for first, end, number in zip(firsts, [*firsts[1:], len(rows)], segment[firsts], strict=True):
        # Many segments have few rows each: numpy's call is the shortest, and `clip` spares it a copy.
        segments[number].numpy().take(local[first:end], axis=0, out=found[first:end], mode="clip")
    return torch.from_numpy(found)[order.argsort()] if (order.diff() < 0).any() else torch.from_numpy(found)


def delete_images(directory: Path, ids: Collection[str]) -> None:
    """Removes images for good: what was computed from them is no longer in any file.

    The shards that held them are written anew without them, and a faiss index is removed. A gallery opened
    before can no longer read those shards' tokens, and says so.

    Raises:
        KeyError: an image is not there; then none is removed.
        GalleryError: the gallery is damaged or cannot be written to.
    """
    with builder_lock(directory):
        delete_alone(directory, ids)


def delete_alone(directory: Path, ids: Collection[str]) -> None:
    """As `delete_images`, for who holds the `builder_lock`."""
    with explained_write_errors(directory):
        stored = StoredGallery(directory)
        manifest = deepcopy(stored.manifest)  # from the old one the shards are still read
        unlisted_shards(directory, manifest)  # a killed deletion's leftovers would be in the way
        rows = set(stored.rows_of(ids))
        kept_columns = read_columns(directory)
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
        (directory / COLUMNS).unlink(missing_ok=True)
        write_manifest(directory, manifest)
        for name in replaced:
            shutil.rmtree(directory / SHARDS / name)
        for file in (FAISS_INDEX, FAISS_DESCRIPTION):
            (directory / file).unlink(missing_ok=True)
        if kept_columns is not None:
            StoredGallery(directory).renew_columns(kept_columns)
