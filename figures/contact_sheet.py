"""What a search found, as a page or an image to look at."""

import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..data.whole_files import check_place, write_text
from ..search.hits import SearchHit, SearchResult

logger = logging.getLogger(__name__)

PAGES = (".html", ".htm")
IMAGE_SIZE = 320  # pixels, of the longest side


def check_sheet(path: Path) -> None:
    """Refuses, before anything is searched, what could not be written afterwards.

    Raises:
        ValueError: the suffix is none that a sheet can have.
        OSError: its folder cannot be made or written to.
        ImportError: it is a figure, and matplotlib is missing.
    """
    if path.suffix.lower() not in PAGES:
        from .saving import FORMATS

        if path.suffix.lower().lstrip(".") not in FORMATS:
            raise ValueError(f"{path}: a sheet ends in .html, .{', .'.join(FORMATS)}, got {path.suffix!r}")
        if find_spec("matplotlib") is None:
            raise ImportError(f"{path}: a figure needs the extra `train`: pip install -e '.[train]'")
    check_place(path)


def write_contact_sheet(path: Path, result: SearchResult) -> None:
    """Writes a page that holds its images itself (.html), or a figure (.png, .jpg, .webp, .svg, .pdf).

    Raises:
        ValueError: a figure of nothing.
    """
    if path.suffix.lower() in PAGES:
        from .pages import render

        write_text(
            path, render("contact_sheet.html", result=result, address_of=_address, scene_of=cache(_scene))
        )
        return
    from .results import ResultRow, plot_result_rows
    from .saving import save_figure

    rows = [ResultRow(text, hits) for text, hits in zip(result.texts, result, strict=True)]
    save_figure(plot_result_rows(rows), path)


def _address(hit: SearchHit) -> str | None:
    """The image, small, as a data address, or None: it may be gone since it was encoded."""
    from .pages import image_address

    try:
        return image_address(hit.image(), IMAGE_SIZE)
    except (OSError, ValueError) as error:
        logger.warning("%s; a placeholder stands in its place", error)
        return None


def _scene(hit: SearchHit) -> str | None:
    """The whole picture that a film shows, as above; None of what is of no film."""
    from .pages import image_address

    try:
        scene = hit.scene()
    except (OSError, ValueError) as error:
        logger.warning("%s; the whole picture is left out", error)
        return None
    return None if scene is None else image_address(scene, IMAGE_SIZE)
