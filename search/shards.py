"""Writes the shards of a gallery, and enters them into its manifest. See [`tpas.search.manifest`]."""

import hashlib
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.json_records import read_json
from ..data.moments import Moment
from ..data.whole_files import UNFINISHED, content_of, denial, replacing
from ..reranking.ranked_lists import tie_key
from .manifest import (
    EMBEDDINGS,
    IMAGES,
    SHARD,
    SHARD_NAME,
    SHARDS,
    THUMBNAILS,
    TOKENS,
    GalleryError,
    GallerySettings,
    read_manifest,
    shard_number,
    write_manifest,
)


@dataclass(frozen=True)
class ShardRow:
    """An encoded image on its way into a shard.

    Attributes:
        embedding: (D,) fp32.
        tokens: (1+N, image width) in the gallery's type, or None.
        root, path: its file, or None.
        thumbnail: JPEG, or None.
        content: of `SourceImage.content` when it was encoded; None where it is no file, or was being changed.
        state: the file's `file_state` then.
        moment: where in a film it was seen, or None.
    """

    id: str
    embedding: Tensor
    tokens: Tensor | None
    root: str | None
    path: str | None
    thumbnail: bytes | None
    content: str | None = None
    state: list[int] | None = None
    moment: Moment | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What is kept of it beside the arrays; what is not known is left out."""
        moment = None if self.moment is None else self.moment.to_record()
        known = {"content": self.content, "state": self.state, "moment": moment}
        known = {name: value for name, value in known.items() if value is not None}
        return {"id": self.id, "root": self.root, "path": self.path} | known


def id_hash(image_id: str) -> int:
    """The first 8 bytes of the id's `tie_key` as int64 of the same order."""
    return int.from_bytes(tie_key(image_id)[:8], "big") - 2**63


def shard_name(number: int, ids: Sequence[str]) -> str:
    """Of the shard at `number` that was to hold images of these ids."""
    digest = hashlib.blake2b(json.dumps(list(ids)).encode(), digest_size=8)
    return f"{number:06d}-{digest.hexdigest()}"


def write_shard(
    directory: Path,
    name: str,
    settings: GallerySettings,
    rows: Sequence[ShardRow],
    unreadable: dict[str, str],
) -> None:
    """Writes the shard `name` in full, or not at all.

    Args:
        unreadable: by id, why an image that belongs here could not be read.
    """
    with replacing(directory / SHARDS / name, durable=True) as partial:
        partial.mkdir()
        images = {
            "pictures": [row.record for row in rows],
            "unreadable": unreadable,
        }
        (partial / IMAGES).write_text(json.dumps(images, indent=0) + "\n", encoding="utf-8")
        if rows:
            _write_tensors(partial, rows, settings)
        if rows and settings.thumbnail_size is not None:
            with zipfile.ZipFile(partial / THUMBNAILS, "w") as archive:
                for number, row in enumerate(rows):
                    # A fixed date, so that equal images make equal files.
                    assert row.thumbnail is not None, "the settings say that thumbnails are kept"
                    archive.writestr(zipfile.ZipInfo(f"{number}.jpg"), row.thumbnail)
        content = {"settings": settings.to_json(), "rows": len(rows), "files": content_of(partial)}
        (partial / SHARD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_tensors(partial: Path, rows: Sequence[ShardRow], settings: GallerySettings) -> None:
    tensors = {
        "embeddings": torch.stack([row.embedding for row in rows]),
        "id_hashes": torch.tensor([id_hash(row.id) for row in rows]),
    }
    if settings.tokens is not None:
        tokens = [row.tokens for row in rows if row.tokens is not None]
        tensors["token_checksums"] = torch.tensor([zlib.crc32(own.numpy().data) for own in tokens])
        save_file({"tokens": torch.stack(tokens)}, partial / TOKENS)  # (n, 1+N, image width)
    save_file(tensors, partial / EMBEDDINGS)


def read_shard(directory: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What shard.json and images.json of a shard say."""
    folder = directory / SHARDS / name
    try:
        contents = [read_json(folder / file) for file in (SHARD, IMAGES)]
        return contents[0] | {"settings": GallerySettings.from_json(contents[0]["settings"])}, contents[1]
    except PermissionError as error:
        raise GalleryError(f"the gallery {denial(directory)}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{folder} is damaged ({error!r}): remove it, and build again") from error


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
        elif path.name.endswith(UNFINISHED):
            shutil.rmtree(path)
    return sorted(finished, key=lambda name: (shard_number(name), name))


def list_shards(directory: Path, manifest: dict[str, Any], names: Sequence[str]) -> None:
    """Enters finished shards into the manifest: the last step of a build.

    It is written only where it says something new: who has the gallery open takes another file for a change.
    """
    contents = [read_shard(directory, name) for name in names]
    for _, records in contents:
        manifest["unreadable"] |= records["unreadable"]
    for name, (shard, records) in zip(names, contents, strict=True):
        for image in records["pictures"]:
            manifest["unreadable"].pop(image["id"], None)  # it could not be read before, as by a killed build
        if shard["rows"]:
            entry = {"name": name, "rows": shard["rows"], "files": shard["files"]}
            if any("moment" in image for image in records["pictures"]):
                entry["moments"] = True  # who looks for visits need not read the records of all other shards
            manifest["shards"].append(entry)
            manifest["next_shard"] = shard_number(name) + 1
    if manifest != read_manifest(directory):
        write_manifest(directory, manifest)


def jpeg_thumbnail(image: Any, size: int) -> bytes:
    """An image within `size` x `size` pixels as JPEG; the image itself stays as it is."""
    small = image.copy()
    small.thumbnail((size, size))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()
