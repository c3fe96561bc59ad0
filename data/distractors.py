"""Images to add to a benchmark's gallery, from a folder or a list of files."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from .image_files import file_inside
from .image_folders import FolderRules, list_images
from .pab_images import image_path
from .text_files import lines_of, read_text
from .whole_files import file_checksum

logger = logging.getLogger(__name__)


def images_listed(listing: Path, follow_links: bool = True) -> list[Path]:
    """The images that a text file names, one path a line, relative to the file's own folder.

    Args:
        follow_links: see `file_inside`.

    Raises:
        ValueError, FileNotFoundError: naming the line that leaves the folder, repeats one, or names no file.
    """
    folder = listing.resolve().parent
    try:
        text = read_text(listing)
    except ValueError as error:
        raise ValueError(f"{listing}: neither a folder nor a list of images: {error}") from error
    lines: dict[Path, int] = {}
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        name, where = line.strip(), f"{listing}, line {number}"
        path = Path(os.path.normpath(folder / name))
        try:
            file_inside(folder, name, follow_links)
        except ValueError as error:
            raise ValueError(f"{where}: {name!r}: {error}; give paths below the list's own folder") from error
        if path in lines:
            raise ValueError(f"{where}: {name!r} is the image of line {lines[path]} again")
        if not path.is_file():
            raise FileNotFoundError(f"{where}: no such image: {path}")
        lines[path] = number
    if not lines:
        raise ValueError(f"{listing}: the list is empty")
    return list(lines)


def find_distractors(
    source: Path, root: Path, gallery_ids: Iterable[str], rules: FolderRules | None = None
) -> dict[str, Path]:
    """Images to add to a benchmark's gallery: gallery id to file.

    An id is the path relative to the root, or where the file lies outside of it, relative to the parent of
    the source's folder. What the gallery holds already is left out, also as a copy of equal bytes: the
    challenge's gallery holds PAB's test images under other names, and a copy of a right answer would count
    as a wrong one.

    Args:
        source: a folder, searched with all folders below, or a text file; see `images_listed`.
        gallery_ids: the benchmark's own images, relative to the root.
        rules: what of a folder is taken; `None`: the defaults. What else it holds is counted in the log.

    Raises:
        FileNotFoundError, ValueError: no such source, no image in it, or an id that is taken.
    """
    rules = rules or FolderRules()
    folder = source if source.is_dir() else source.parent
    folder = folder.resolve()
    if source.is_dir():
        content = list_images(folder, rules)
        found = [folder / name for name in content.images]
        if not found:
            raise FileNotFoundError(f"{source}: no image in it. {content.left_out.line()}".removesuffix(". "))
        content.left_out.report(source)
    elif source.is_file():
        found = images_listed(source, rules.follow_links)
    else:
        raise FileNotFoundError(f"{source}: neither a folder of images nor a list of them")
    root = root.resolve()

    own = {path for gallery_id in gallery_ids if (path := image_path(root, gallery_id)).is_file()}
    own_names = set(gallery_ids)
    by_size: dict[int, list[Path]] = {}
    for path in own:
        by_size.setdefault(path.stat().st_size, []).append(path)
    digests: dict[int, set[str]] = {}  # by size, only of sizes that a distractor has as well
    distractors: dict[str, Path] = {}
    copies = 0
    for path in found:
        size = path.stat().st_size
        if size in by_size and size not in digests:
            digests[size] = {file_checksum(other) for other in by_size[size]}
        if path.resolve() in own or (size in digests and file_checksum(path) in digests[size]):
            copies += 1
            continue
        gallery_id = path.relative_to(root if path.is_relative_to(root) else folder.parent).as_posix()
        if gallery_id in own_names or gallery_id in distractors:
            raise ValueError(
                f"{path}: the gallery has another image named {gallery_id!r}: rename the distractors' folder"
            )
        distractors[gallery_id] = path
    if copies:
        logger.info("%d of %d distractors are in the gallery already and left out", copies, len(found))
    return distractors
