"""What a figure looks like, and hits to draw."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tpas.figures.results import ResultRow, plot_result_rows
from tpas.figures.saving import save_figure
from tpas.search.hits import SearchHit

COLOURS = [(200, 30, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200)]
IMAGES = [Image.new("RGB", (40, 60), colour) for colour in COLOURS]
DOTS = 288  # an inch, four a point


def pixels(figure: Figure, folder: Path) -> np.ndarray:
    """What the figure looks like as a file, (H, W, 3)."""
    return np.asarray(Image.open(save_figure(figure, folder / "figure.png", DOTS)).convert("RGB")).astype(int)


def columns_with(image: np.ndarray, colour: tuple, tolerance: int = 6, at_least: int = 20) -> np.ndarray:
    """The columns in which many pixels have about that colour."""
    return np.flatnonzero((np.abs(image - np.array(colour)).max(axis=2) <= tolerance).sum(axis=0) >= at_least)


def framed(image: np.ndarray, frame: str) -> list[int]:
    """Which of IMAGES stand inside a frame of that colour: its sides are just outside of theirs."""
    sides = columns_with(image, [round(255 * part) for part in to_rgb(frame)], at_least=100)
    found = []
    for number, colour in enumerate(COLOURS):
        own = columns_with(image, colour)
        if len(own) and any(own[0] - 20 < side < own[0] for side in sides):
            found.append(number)
    return found


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def hits(
    images: Sequence[Image.Image | str | Path], scores: Sequence[float] | None = None
) -> list[SearchHit]:
    """In their order, with the ids "0", "1", ... and these scores, or those of 9, 8, ..."""
    return [
        SearchHit.of_image(str(place), place + 1, 9.0 - place if scores is None else scores[place], image)
        for place, image in enumerate(images)
    ]


def plotted(
    text: str, images: Sequence[Image.Image | str | Path], scores: Sequence[float] | None = None
) -> Figure:
    return plot_result_rows([ResultRow(text, hits(images, scores))])
