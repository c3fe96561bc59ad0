"""Texts as lines that fit a width, measured in the font that matplotlib is set to."""

import unicodedata
from bisect import bisect_right
from functools import lru_cache

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

ELLIPSIS = "…"
MEASURED_AT = 200  # dots an inch; any would do


def wrap(text: str, width: float, size: float, max_lines: int) -> list[str]:
    """Lines of at most `width` inches at `size` points; what exceeds `max_lines` ends in an ellipsis.

    White space becomes single spaces; control characters, and surrogates that no font can take, go. Lines
    break at spaces, and inside a word only where it is wider than a line.
    """
    font = FontProperties(size=size)
    text = " ".join(text.split())
    words = "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cs")).split()
    lines, line = [], ""
    for word in words:
        longer = f"{line} {word}".lstrip()
        if _width(longer, font) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while len(word) > 1 and _width(word, font) > width:
            # The most characters that fit, at least one.
            lengths = range(1, len(word))
            fits = max(1, bisect_right(lengths, width, key=lambda length: _width(word[:length], font)))
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    lines.append(line)
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and _width(last + ELLIPSIS, font) > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + ELLIPSIS]
    return lines


def _width(text: str, font: FontProperties) -> float:
    """In inches."""
    return _renderer().get_text_width_height_descent(text, font, ismath=False)[0] / MEASURED_AT


@lru_cache(maxsize=1)
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, MEASURED_AT)
