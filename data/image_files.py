"""Image files in a folder: which there are, and opening one that must not lie outside."""

import os
from functools import cache
from pathlib import Path

from PIL import Image

from ..processing_tpas import IMAGE_FORMATS, load_image


@cache
def image_suffixes() -> frozenset[str]:
    """How the names of files end that [`load_image`] opens, in lower case, such as ".jpg"."""
    registered = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in registered.items() if kind in IMAGE_FORMATS)


def images_in(folder: Path) -> list[str]:
    """Every image below a folder, by its suffix: sorted paths relative to the folder, in POSIX form.

    Links to folders are not followed. Empty where there is none.
    """
    suffixes = image_suffixes()
    return sorted(
        Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in suffixes
    )


def file_inside(root: str | Path, path: str | Path) -> Path:
    """The real path of `root`/`path`, whether there is such a file or not.

    Raises:
        ValueError: it lies outside `root`, be it through a link, or is no file.
    """
    folder = Path(os.path.realpath(root))
    file = Path(os.path.realpath(folder / path))  # unlike `Path.resolve`, takes links in a circle
    if not file.is_relative_to(folder):
        raise ValueError(f"{folder / path} leads out of {folder}, to {file}")
    if file.exists() and not file.is_file():  # to open a pipe would wait for its writer
        raise ValueError(f"{file} is no file")
    return file


def load_inside(root: str, path: str) -> Image.Image:
    """The image `root`/`path`.

    Raises:
        ValueError: it is no image, or lies outside `root`, be it through a link.
        FileNotFoundError: there is no such file.
    """
    return load_image(file_inside(root, path))
