"""Texts of any language in a figure: fonts that have their characters, and lines that fit a width."""

import logging
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

logger = logging.getLogger(__name__)

DEFAULT_FAMILY = "DejaVu Sans"  # comes with matplotlib
MISSING = "□"  # in place of a character that no installed font has
ELLIPSIS = "…"
MEASURED_AT = 200  # dots an inch; any would do


def drawable(text: str) -> tuple[str, list[str]]:
    """The text on one line as it can be drawn, and the font families that it takes, the first choice first.

    White space becomes single spaces and control characters go. A character that no installed font has
    becomes a box, and the log says which characters those were. matplotlib joins Arabic letters and turns
    right-to-left text itself.
    """
    text = "".join(char for char in " ".join(text.split()) if unicodedata.category(char) != "Cc")
    families = [DEFAULT_FAMILY]
    lacking = set(text) - _characters(font_manager.findfont(DEFAULT_FAMILY))
    if lacking:
        for family, path in _installed_fonts():
            found = lacking & _characters(path)
            if found:
                families.append(family)
                lacking -= found
            if not lacking:
                break
    if lacking:
        shown = ", ".join(f"{char!r} (U+{ord(char):04X})" for char in sorted(lacking)[:5])
        logger.warning(
            "no installed font has %s%s: drawn as boxes; install a font of that script, such as one of Noto",
            shown,
            " and others" if len(lacking) > 5 else "",
        )
        text = "".join(_in_place_of(char) if char in lacking else char for char in text)
    return text, families


def _in_place_of(char: str) -> str:
    return "" if unicodedata.category(char) == "Cf" else MISSING  # Cf: joiners and marks that have no shape


@lru_cache(maxsize=256)
def _characters(path: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))


def _installed_fonts() -> Iterable[tuple[str, str]]:
    """Family and file of the upright fonts of normal weight, but for "Last Resort", which has only boxes."""
    for font in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        if font.style == "normal" and font.weight in (400, "normal") and "Last Resort" not in font.name:
            yield font.name, font.fname


def is_right_to_left(text: str) -> bool:
    """Whether the first letter with a direction runs from right to left."""
    directions = (unicodedata.bidirectional(char) for char in text)
    return next((kind for kind in directions if kind in ("L", "R", "AL")), "L") != "L"


def wrap(text: str, width: float, size: float, families: list[str], max_lines: int) -> list[str]:
    """Lines of at most `width` inches at `size` points; what exceeds `max_lines` ends in an ellipsis.

    Lines break at spaces, and inside a word only where it is wider than a line or the script has no spaces.
    """
    font = FontProperties(family=families, size=size)
    lines, line = [], ""
    for piece in _pieces(text):
        if line and _width(line + piece.rstrip(), font) > width:
            lines.append(line.rstrip())
            line, piece = "", piece.lstrip()
        while len(piece) > 1 and _width(piece.rstrip(), font) > width:
            # The most characters that fit, at least one.
            lengths = range(1, len(piece))
            fits = max(1, bisect_right(lengths, width, key=lambda length: _width(piece[:length], font)))
            lines.append(piece[:fits])
            piece = piece[fits:]
        line += piece
    lines.append(line.rstrip())
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and _width(last + ELLIPSIS, font) > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + ELLIPSIS]
    return lines


def _pieces(text: str) -> list[str]:
    """Words with the space behind them; each wide (East Asian) character for itself."""
    pieces = [""]
    for char in text:
        wide = unicodedata.east_asian_width(char) in "WF"
        if pieces[-1] and (
            wide or pieces[-1].endswith(" ") or unicodedata.east_asian_width(pieces[-1][-1]) in "WF"
        ):
            pieces.append("")
        pieces[-1] += char
    return pieces


def _width(text: str, font: FontProperties) -> float:
    """In inches."""
    return _renderer().get_text_width_height_descent(text, font, ismath=False)[0] / MEASURED_AT


@lru_cache(maxsize=1)
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, MEASURED_AT)
