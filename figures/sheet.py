"""A sheet of images and texts, laid out in inches from its upper left corner."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

from .text import wrap

logger = logging.getLogger(__name__)

RIGHT, WRONG, NEUTRAL, TEXT, QUIET = "#1b7f4d", "#b3382c", "#b9bcbf", "#1d1f21", "#62666b"
TEXT_SIZE, CAPTION_SIZE = 10.0, 8.0  # points
LINE_SPACING = 1.3
ASCENT = 0.93  # of the letters' size, above the baseline
FRAME_GAP = 0.025  # inches between image and frame
PADDING = 0.09  # inches between text, image and caption
MARGIN, GAP, BETWEEN_ROWS = 0.2, 0.16, 0.3  # inches around the sheet, between images, between rows
LARGEST_SIDE = 700  # pixels kept of an image, which is shown at two inches or so


def open_or_none(open_image: Callable[[], Image.Image]) -> Image.Image | None:
    """The image, no larger than a sheet shows it, or None where it cannot be had, and the log says why."""
    try:
        image = open_image()
    except (OSError, ValueError) as error:
        logger.warning("%s; a placeholder stands in its place", error)
        return None
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return image


@dataclass(frozen=True)
class Paragraph:
    """A text as lines that fit."""

    lines: list[str]
    size: float

    @classmethod
    def fit(cls, text: str, width: float, size: float = TEXT_SIZE, max_lines: int = 8) -> "Paragraph":
        """The text in lines of at most `width` inches."""
        return cls(wrap(text, width, size, max_lines), size)

    @property
    def height(self) -> float:
        """In inches."""
        return len(self.lines) * self.size * LINE_SPACING / 72


class Sheet:
    """A figure of `width` x `height` inches; whatever is put on it is placed by its upper left corner."""

    def __init__(self, width: float, height: float):
        self.width = width
        self.height = height
        self.figure = Figure(figsize=(width, height))

    def paragraph(self, paragraph: Paragraph, left: float, top: float, **style: Any) -> None:
        for number, line in enumerate(paragraph.lines):
            below = top + number * paragraph.size * LINE_SPACING / 72
            self._text(line, left, below, paragraph.size, **style)

    def caption(self, text: str, left: float, top: float, width: float, **style: Any) -> None:
        """One line, centred."""
        self._text(text, left + width / 2, top, CAPTION_SIZE, ha="center", **style)

    def image(
        self,
        image: Image.Image | None,
        left: float,
        top: float,
        width: float,
        height: float,
        *,
        frame: str = NEUTRAL,
        frame_width: float = 1.0,
    ) -> None:
        """An image as large as the box allows, centred, with a frame (`frame_width` in points) around it."""
        across, down = fitted_size(image, width, height)
        left, top = left + (width - across) / 2, top + (height - down) / 2
        bottom = self.height - top - down
        if image is None:
            self.figure.add_artist(
                Rectangle(
                    (left, bottom), across, down, color="#e4e5e3", transform=self.figure.dpi_scale_trans
                )
            )
            middle = top + (down - CAPTION_SIZE / 72) / 2
            self.caption("no image", left, middle, across, color=QUIET)
        else:
            place = (left / self.width, bottom / self.height, across / self.width, down / self.height)
            axes = self.figure.add_axes(place)
            axes.imshow(image, aspect="auto")
            axes.set_axis_off()
        outset = FRAME_GAP + frame_width / 144
        self.figure.add_artist(
            Rectangle(
                (left - outset, bottom - outset),
                across + 2 * outset,
                down + 2 * outset,
                fill=False,
                edgecolor=frame,
                linewidth=frame_width,
                joinstyle="round",
                transform=self.figure.dpi_scale_trans,
            )
        )

    def arrow(self, left: float, middle: float, width: float) -> None:
        """From left to right at the height `middle`."""
        self.figure.add_artist(
            FancyArrowPatch(
                (left, self.height - middle),
                (left + width, self.height - middle),
                arrowstyle="-|>",
                mutation_scale=9,
                color=QUIET,
                shrinkA=0,
                shrinkB=0,
                transform=self.figure.dpi_scale_trans,
            )
        )

    def rule(self, top: float, margin: float) -> None:
        """A thin line across the sheet."""
        self.figure.add_artist(
            Rectangle(
                (margin, self.height - top),
                self.width - 2 * margin,
                0,
                edgecolor="#dedfda",
                linewidth=0.8,
                transform=self.figure.dpi_scale_trans,
            )
        )

    def _text(self, text: str, left: float, top: float, size: float, color: str = TEXT, **style: Any) -> None:
        self.figure.text(
            left,
            self.height - top - ASCENT * size / 72,
            text,
            fontsize=size,
            va="baseline",  # "top" would set lines with and without tall letters at different heights
            parse_math=False,  # a $ in a text is a $
            transform=self.figure.dpi_scale_trans,
            color=color,
            **style,
        )


def fitted_size(image: Image.Image | None, width: float, height: float) -> tuple[float, float]:
    """Width and height of an image, in its own proportions, as large as the box allows."""
    if image is None:
        return width, height
    scale = min(width / image.width, height / image.height)
    return image.width * scale, image.height * scale


def box_for(images: Sequence[Image.Image | None], height: float, narrowest: float, widest: float) -> float:
    """The width of a box of that height in which all the images have it, within bounds."""
    widths = [height * image.width / image.height for image in images if image is not None]
    return min(max([narrowest, *widths]), widest)


def plot_note(text: str) -> Figure:
    """A figure that says in words that there is nothing to draw."""
    paragraph = Paragraph.fit(text, 5.0)
    sheet = Sheet(5.4, paragraph.height + 0.4)
    sheet.paragraph(paragraph, 0.2, 0.2, color=QUIET)
    return sheet.figure
