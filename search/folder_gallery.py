"""The gallery of a plain folder of images, kept beside it and brought up to date whenever it is asked for.

    IMAGES.gallery/<fingerprints>/     a model's and image processor's gallery, see `tpas.search.manifest`
        files.json                       the encoded files' sizes and times of change

Where the folder beside cannot be written to, it is kept in the user's cache.
"""

import json
import logging
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..data.image_sources import find_images
from ..data.whole_files import write_json
from ..modeling_tpas import TPASModel
from ..models.fingerprints import image_fingerprint, model_fingerprint
from ..processing_tpas import TPASProcessor
from .gallery import Gallery
from .manifest import MANIFEST, SHARDS, GalleryError, explained_write_errors

logger = logging.getLogger(__name__)

RECORD = "files.json"
FileStates = dict[str, list[int]]  # by id: size in bytes, time of change in nanoseconds


def place_of_gallery(folder: Path) -> Path:
    """Where the galleries of a folder's images are kept."""
    folder = Path(os.path.realpath(folder))
    beside = folder.with_name(f"{folder.name}.gallery") if folder.name else None
    if beside is not None and os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tpas" / f"{folder.name}-{blake2b(os.fsencode(folder), digest_size=8).hexdigest()}"


def open_folder(folder: Path, model: TPASModel, processor: TPASProcessor, **opened_as: Any) -> Gallery:
    """The gallery of the images that are in the folder now.

    New images are encoded, changed ones again (seen by size and time of change), and those that are gone
    are deleted. It may be killed at any time and goes on from there. `opened_as`: settings of `Gallery.open`
    other than `images_root`.

    Raises:
        NotADirectoryError, ValueError: there is no such folder, or no image in it.
        GalleryError: another process brings it up to date, or the disk failed.
    """
    fingerprints = f"{model_fingerprint(model)}-{image_fingerprint(model, processor)}"
    path = place_of_gallery(folder) / fingerprints
    images = list(find_images(folder))
    now = {image.id: _state(folder / image.id) for image in images}
    then, finished = _read_record(path)
    if not (finished and then == now and (path / MANIFEST).exists()):
        if not finished:  # its shards may hold files as they were then
            Gallery.build(model, processor, images, path)
        kept = _without(path, {name for name, state in then.items() if now.get(name) != state})
        logger.info("%s: %d of %d images to encode", path, len(now.keys() - kept), len(now))
        path.mkdir(parents=True, exist_ok=True)
        _write_record(path, now, finished=False)
        Gallery.build(model, processor, images, path)
        _write_record(path, now, finished=True)
    # The folder may have been moved together with its gallery.
    return Gallery.open(path, model, processor, images_root=os.path.realpath(folder), **opened_as)


def _without(path: Path, stale: set[str]) -> set[str]:
    """Deletes images from a gallery, where there is one; returns the ids that are left."""
    if not (path / MANIFEST).exists():
        return set()
    gallery = Gallery.open(path)
    if gone := stale.intersection(gallery.ids):
        logger.info("%s: %d images are gone or were changed", path, len(gone))
        gallery.delete(gone)
    return set(gallery.ids)


def _state(file: Path) -> list[int]:
    try:
        status = file.stat()
    except OSError:  # gone since it was listed, a link to itself: whoever reads it will name it
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def _read_record(path: Path) -> tuple[FileStates, bool]:
    """The states at the last search, and whether it encoded them all.

    Raises:
        GalleryError: the record is damaged, or lost, and nothing says how old the embeddings are.
    """
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        return dict(record["files"]), bool(record["finished"])
    except FileNotFoundError:
        if (path / SHARDS).exists():
            raise GalleryError(f"{path / RECORD} is missing: remove {path}, it is made again") from None
        return {}, True
    except (ValueError, KeyError, TypeError) as error:
        raise GalleryError(
            f"{path / RECORD} is damaged ({error!r}): remove {path}, it is made again"
        ) from error


def _write_record(path: Path, files: FileStates, finished: bool) -> None:
    with explained_write_errors(path):
        write_json(path / RECORD, {"finished": finished, "files": files}, durable=True)
