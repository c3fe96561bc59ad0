"""Figures as files, and as SVG inside a page."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..data.whole_files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg", "jpg", "webp")
DOTS_PER_INCH = 150
QUALITY = 88  # of what is compressed with losses, in percent


def save_figure(figure: "Figure", path: str | Path, dots_per_inch: int = DOTS_PER_INCH) -> Path:
    """Writes a figure in the format that the name ends in, one of `FORMATS`. The file is whole or not there.

    The same figure gives the same bytes.
    """
    path = Path(path)
    kind = check_format(path)
    with replacing(path) as unfinished:
        _write(figure, unfinished, kind, dots_per_inch)
    return path


def check_format(path: Path) -> str:
    """Which of `FORMATS` a figure's name ends in; raises ValueError for another end."""
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise ValueError(f"{path}: a figure is written as one of {', '.join(FORMATS)}, got {path.suffix!r}")
    return kind


def svg_of(figure: "Figure") -> str:
    """The figure as SVG on no background, as a page embeds it."""
    file = io.BytesIO()
    _write(figure, file, "svg", DOTS_PER_INCH, transparent=True)
    return file.getvalue().decode()


def _write(figure: "Figure", file: BinaryIO | Path, kind: str, dots_per_inch: int, **settings: Any) -> None:
    import matplotlib  # takes a second, which the check of a file's name does not need

    # Left alone, the date and random names would make every file another one. 42: text stays text in a PDF.
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    if kind in ("jpg", "webp"):
        settings["pil_kwargs"] = {"quality": QUALITY}
    with matplotlib.rc_context({"svg.hashsalt": "tpas", "pdf.fonttype": 42}):
        figure.savefig(file, format=kind, dpi=dots_per_inch, metadata=undated.get(kind), **settings)
