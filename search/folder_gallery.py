"""The gallery of a plain folder of images, kept beside it and brought up to date whenever it is asked for.

    IMAGES.gallery/<fingerprints>/     a model's and image processor's gallery, see `tpas.search.manifest`
        files.json                       the encoded files' states

Where the folder beside cannot be written to, it is kept in the user's cache.
"""

import logging
import os
from pathlib import Path
from typing import Any

from ..data.image_folders import FolderRules
from ..data.image_sources import SourceImage, file_state, find_images
from ..data.json_records import read_json
from ..data.whole_files import denial, write_json
from ..models.fingerprints import image_fingerprint, model_fingerprint
from ..models.interface import RetrievalModel, RetrievalProcessor
from .building import is_same, report_left_out
from .gallery import Gallery
from .gallery_files import place_of_gallery
from .manifest import MANIFEST, SHARDS, GalleryError, explained_write_errors

logger = logging.getLogger(__name__)

RECORD = "files.json"
LARGEST_RECORD = 2**30  # bytes: some hundred for each image
# By id, as `file_state` says; early versions wrote the first two numbers alone.
FileStates = dict[str, list[int]]


def open_folder(
    folder: Path,
    model: RetrievalModel,
    processor: RetrievalProcessor,
    *,
    rules: FolderRules | None = None,
    **opened_as: Any,
) -> Gallery:
    """The gallery of the images that are in the folder now.

    New images are encoded, changed ones again, and those that are gone are deleted; what else the folder
    holds is counted in the log. A file whose size, times or entry differ from what they were is read, and
    encoded again if its content differs: a folder that was moved or copied with its gallery is not. It may be
    killed at any time and goes on from there.

    Args:
        rules: what of the folder is taken; `None`: the defaults, see `Gallery.build`.
        opened_as: settings of `Gallery.open` other than `images_root` and `follow_links`.

    Raises:
        NotADirectoryError, ValueError: there is no such folder, or no image in it.
        GalleryError: another process brings it up to date, or the disk failed.
    """
    fingerprints = f"{model_fingerprint(model)}-{image_fingerprint(model, processor)}"
    path = place_of_gallery(folder) / fingerprints
    rules = rules or FolderRules()
    found = find_images(folder, rules=rules)
    images = list(found)
    now = {image.id: file_state(Path(image.root or "", image.path or "")) for image in images}
    then, finished = _read_record(path)
    if not (finished and then == now and (path / MANIFEST).exists()):
        if not finished:  # its shards may hold files as they were then
            Gallery.build(model, processor, images, path, on_clash="skip")
        stale = {name for name, state in then.items() if now.get(name, [])[: len(state)] != state}
        kept = _without(path, stale, {image.id: image for image in images})
        logger.info("%s: %d of %d images to encode", path, len(now.keys() - kept), len(now))
        path.mkdir(parents=True, exist_ok=True)
        _write_record(path, now, finished=False)
        Gallery.build(model, processor, images, path, on_clash="skip")
        _write_record(path, now, finished=True)
    # The folder may have been moved together with its gallery.
    root = os.path.realpath(folder)
    opened_as |= {"images_root": root, "follow_links": rules.follow_links}
    gallery = Gallery.open(path, model, processor, **opened_as)
    report_left_out(found, gallery.stored)
    return gallery


def _without(path: Path, stale: set[str], images: dict[str, SourceImage]) -> set[str]:
    """Deletes what is stale from a gallery, where there is one; returns the ids that are left.

    Args:
        stale: ids whose files are gone or may have changed.
        images: those that are there now, by id.
    """
    if not (path / MANIFEST).exists():
        return set()
    gallery = Gallery.open(path)
    there = stale.intersection(gallery.ids)
    records = zip(there, map(gallery.stored.record, gallery.stored.rows_of(there)), strict=True)
    same = {name for name, record in records if name in images and is_same(images[name], record)}
    if gone := there - same:
        logger.info("%s: %d images are gone or were changed", path, len(gone))
        gallery.delete(gone)
    return set(gallery.ids)


def _read_record(path: Path) -> tuple[FileStates, bool]:
    """The states at the last search, and whether it encoded them all.

    Raises:
        GalleryError: the record is damaged, or lost, and nothing says how old the embeddings are.
    """
    try:
        record = read_json(path / RECORD, LARGEST_RECORD)
        return dict(record["files"]), bool(record["finished"])
    except PermissionError as error:
        raise GalleryError(f"the gallery {denial(path)}") from error
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
