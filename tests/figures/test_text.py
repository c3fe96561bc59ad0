"""Texts fit, and are drawn as they are."""

import pytest
from figure_pixels import IMAGES, pixels, plotted, texts
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tpas.figures.sheet import Paragraph
from tpas.figures.text import ELLIPSIS, wrap

LONG = "A man in a red coat is lying on the pavement beside his bicycle. " * 4


def width_of(line: str, size: float) -> float:
    """In inches, measured by drawing it."""
    figure = Figure(dpi=200)
    canvas = FigureCanvasAgg(figure)
    drawn = figure.text(0, 0, line, fontsize=size, parse_math=False)
    return drawn.get_window_extent(canvas.get_renderer()).width / 200


@pytest.mark.parametrize("text", [LONG, "W" * 300, "□" * 100, LONG + "x" * 90 + " end"])
def test_lines_fit_and_lose_nothing(text):
    lines = wrap(text, 3.0, 10.0, max_lines=99)
    assert len(lines) > 3
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(width_of(line, 10.0) <= 3.02 for line in lines)
    for line, following in zip(lines, lines[1:], strict=False):  # none is broken for nothing
        assert width_of(f"{line} {following.split()[0]}", 10.0) > 2.98


def test_words_stay_whole_where_they_can():
    lines = wrap(LONG.strip(), 3.0, 10.0, max_lines=99)
    assert " ".join(lines) == LONG.strip()


def test_too_long_a_text_ends_in_an_ellipsis():
    paragraph = Paragraph.fit(LONG, 3.0, max_lines=2)
    assert len(paragraph.lines) == 2
    assert paragraph.lines[-1].endswith(ELLIPSIS)
    assert width_of(paragraph.lines[-1], 10.0) <= 3.02


def test_a_dollar_is_a_dollar_and_white_space_is_one_space(tmp_path):
    figure = plotted("from $5\tto\n\n$6 \\frac\x00", IMAGES)
    assert texts(figure)[0] == "from $5 to $6 \\frac"
    pixels(figure, tmp_path)  # as mathematics it could not be drawn


@pytest.mark.parametrize("text", ["走在路上的人", "\u0915 \U000e0001", "איש במעיל אדום"])
@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")  # matplotlib says so itself
def test_a_script_without_a_font_is_drawn_somehow(text, tmp_path):
    figure = plotted(text, IMAGES)
    assert texts(figure)[0] == text
    pixels(figure, tmp_path)


def test_half_a_character_is_left_out(tmp_path):
    figure = plotted("A \ud800man", IMAGES)
    assert texts(figure)[0] == "A man"
    pixels(figure, tmp_path)
