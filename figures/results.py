"""Texts with their ranked images in a row, as in Figure 2 of the paper (https://arxiv.org/abs/2502.03230)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from PIL import Image

from .sheet import (
    CAPTION_SIZE,
    LINE_SPACING,
    NEUTRAL,
    PADDING,
    QUIET,
    RIGHT,
    WRONG,
    ImageSource,
    Paragraph,
    RankedImage,
    Sheet,
    box_for,
    open_or_none,
)

if TYPE_CHECKING:
    from ..search.hits import SearchHit

MARGIN, GAP, BETWEEN_ROWS = 0.2, 0.16, 0.3  # inches
IMAGE_HEIGHT, NARROWEST, WIDEST = 1.5, 0.75, 2.25
LEAST_TEXT_WIDTH = 5.0
CAPTION_HEIGHT = CAPTION_SIZE * LINE_SPACING / 72
HEADING_HEIGHT = CAPTION_HEIGHT + 0.02


@dataclass(frozen=True)
class ResultRow:
    """A text and the images that answer it, best first; `heading` is a word on how it fared."""

    text: str
    images: Sequence[RankedImage]
    heading: str = ""

    @classmethod
    def of_hits(
        cls, text: str, hits: "Sequence[SearchHit]", relevant: Collection[str] | None = None
    ) -> "ResultRow":
        """What `Gallery.search` found; `relevant` are the ids of the right images, None: not known."""
        return cls(
            text,
            [
                RankedImage(
                    _image_of(hit), hit.score, None if relevant is None else hit.id in relevant, hit.rank
                )
                for hit in hits
            ],
        )


def plot_results(
    text: str,
    images: Sequence[ImageSource],
    scores: Sequence[float] | None = None,
    right: Sequence[bool] | None = None,
    *,
    heading: str = "",
) -> Figure:
    """A text over its ranked images, best first, each with rank and score under it.

        figure = plot_results("a man lying on the road", [one, "two.jpg"], [4.1, -0.3], [False, True])
        save_figure(figure, "answer.png")

    A right image has a thick green frame and a tick, a wrong one that was ranked before it a red frame, all
    others a grey one. Nothing needs to be known of the images: without `right` all frames are grey.

    Args:
        images: PIL images or paths; what is None or cannot be read becomes a placeholder.
        scores: one an image.
        right: whether each is what was looked for.

    Raises:
        ValueError: no images, or other numbers of scores or of `right`.
    """
    for name, values in (("scores", scores), ("right", right)):
        if values is not None and len(values) != len(images):
            raise ValueError(f"{name} must have one value an image, got {len(values)} for {len(images)}")
    ranked = [
        RankedImage(
            image,
            None if scores is None else float(scores[place]),
            None if right is None else bool(right[place]),
            place + 1,
        )
        for place, image in enumerate(images)
    ]
    return plot_result_rows([ResultRow(text, ranked, heading)])


def plot_result_rows(rows: Sequence[ResultRow]) -> Figure:
    """Several texts, each over its own images; see `plot_results`.

    Raises:
        ValueError: no row, or a row without images.
    """
    if not rows or not all(row.images for row in rows):
        raise ValueError("there is nothing to show: give at least one row, and every row an image")
    images = [[open_or_none(ranked.image) for ranked in row.images] for row in rows]
    box = box_for([image for row in images for image in row], IMAGE_HEIGHT, NARROWEST, WIDEST)
    columns = max(len(row.images) for row in rows)
    text_width = max(LEAST_TEXT_WIDTH, columns * (box + GAP) - GAP)
    texts = [Paragraph.fit(row.text, text_width) for row in rows]
    labelled = any(ranked.right for row in rows for ranked in row.images)
    heights = [
        (HEADING_HEIGHT if row.heading else 0)
        + (text.height + PADDING)
        + (IMAGE_HEIGHT + PADDING)
        + CAPTION_HEIGHT * (2 if labelled else 1)
        for row, text in zip(rows, texts, strict=True)
    ]
    height = sum(heights) + BETWEEN_ROWS * (len(rows) - 1) + 2 * MARGIN
    sheet = Sheet(text_width + 2 * MARGIN, height)
    top = MARGIN
    for row, text, opened, row_height in zip(rows, texts, images, heights, strict=True):
        if top > MARGIN:
            sheet.rule(top - BETWEEN_ROWS / 2, MARGIN)
        _draw_row(sheet, row, text, opened, top, box)
        top += row_height + BETWEEN_ROWS
    return sheet.figure


def _draw_row(sheet: Sheet, row: ResultRow, text: Paragraph, images: list, top: float, box: float) -> None:
    text_width = sheet.width - 2 * MARGIN
    if row.heading:
        colour = {True: RIGHT, False: WRONG, None: QUIET}[row.images[0].right]
        heading = Paragraph.fit(row.heading, text_width, CAPTION_SIZE, max_lines=1)
        sheet.paragraph(heading, MARGIN, top, text_width, color=colour, weight="bold")
        top += HEADING_HEIGHT
    sheet.paragraph(text, MARGIN, top, text_width)
    top += text.height + PADDING
    found = False
    for place, (ranked, image) in enumerate(zip(row.images, images, strict=True)):
        found = found or bool(ranked.right)
        left = MARGIN + place * (box + GAP)
        draw_ranked(sheet, ranked, image, left, top, box, IMAGE_HEIGHT, before_the_right_one=not found)


def draw_ranked(
    sheet: Sheet,
    ranked: RankedImage,
    image: Image.Image | None,
    left: float,
    top: float,
    width: float,
    height: float,
    *,
    before_the_right_one: bool = True,
) -> None:
    """A framed image with its caption, and whether it is right, under it."""
    frame = NEUTRAL
    if ranked.right:
        frame = RIGHT
    elif ranked.right is False and before_the_right_one:
        frame = WRONG
    sheet.image(image, left, top, width, height, frame=frame, frame_width=3.0 if ranked.right else 1.2)
    below = top + height + PADDING
    sheet.caption(ranked.caption, left, below, width, color=QUIET)
    if ranked.right:
        sheet.caption("✓ right", left, below + CAPTION_HEIGHT, width, color=RIGHT, weight="bold")


def _image_of(hit: "SearchHit") -> ImageSource:
    """The image, or where it cannot be had its path, whose absence is then logged."""
    try:
        return hit.image()
    except (OSError, ValueError):
        return hit.path
