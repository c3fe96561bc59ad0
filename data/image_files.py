"""Image files: how their names end, and opening one below a root that must not be left."""

import os
from functools import cache
from pathlib import Path

from PIL import Image

from ..processing_tpas import image_formats, load_image
from .whole_files import explained_denial


@cache
def image_suffixes() -> frozenset[str]:
    """How the names of files end that [`load_image`] opens, in lower case, such as ".jpg"."""
    formats = {*image_formats(), "MPO"}  # of stereo cameras: two in one file, which the JPEG decoder opens
    registered = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in registered.items() if kind in formats)


def file_inside(root: str | Path, path: str | Path, follow_links: bool = True) -> Path:
    """The real path of `root`/`path`, whether there is such a file or not.

    `path` is what a file says, an annotation or a gallery, and may come from anybody: it cannot leave the
    root by "..", nor as an absolute path. A link below the root is the work of who keeps that folder, and
    leads where they want, be it out of it.

    Args:
        follow_links: otherwise a file that lies outside of `root`, through a link, is refused as well.

    Raises:
        ValueError: it would lie outside, or is no file.
        PermissionError: a folder on the way may not be read.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"{Path(root, path)} leads out of {root}")
    folder = Path(os.path.realpath(root))
    file = Path(os.path.realpath(folder / path))  # unlike `Path.resolve`, takes links in a circle
    if not follow_links and not file.is_relative_to(folder):
        raise ValueError(f"{folder / path} is a link that leads out of {folder}, to {file}")
    with explained_denial(file):
        if file.exists() and not file.is_file():  # to open a pipe would wait for its writer
            raise ValueError(f"{file} is no file")
    return file


def load_inside(
    root: str | Path, path: str | Path, follow_links: bool = True, edge: int | None = None
) -> Image.Image:
    """The image `root`/`path`; see [`file_inside`], and [`load_image`] for the `edge`.

    Raises:
        ValueError: it is no image, or lies outside `root`.
        FileNotFoundError: there is no such file.
        PermissionError: this user may not read it.
    """
    return load_file(file_inside(root, path, follow_links), edge)


def load_file(file: Path, edge: int | None = None) -> Image.Image:
    """As [`load_image`], where this user may not read it with the way out."""
    with explained_denial(file):
        return load_image(file, edge=edge)
