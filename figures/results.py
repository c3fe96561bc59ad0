"""Texts with their ranked images in a row, as in Figure 2 of the paper (https://arxiv.org/abs/2502.03230)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ..data.moments import clock
from ..processing_tpas import load_image
from ..search.hits import SearchHit
from .sheet import (
    BETWEEN_ROWS,
    CAPTION_SIZE,
    GAP,
    LINE_SPACING,
    MARGIN,
    NEUTRAL,
    PADDING,
    QUIET,
    RIGHT,
    WRONG,
    Paragraph,
    Sheet,
    box_for,
    open_or_none,
)

IMAGE_HEIGHT, NARROWEST, WIDEST = 1.5, 0.75, 2.25
LEAST_TEXT_WIDTH = 5.0
CAPTION_HEIGHT = CAPTION_SIZE * LINE_SPACING / 72
HEADING_HEIGHT = CAPTION_HEIGHT + 0.02


@dataclass(frozen=True)
class ResultRow:
    """A text and the images that answer it, best first.

    Attributes:
        relevant: the ids of the right images; None: not known.
        heading: a word on how it fared.
        missed: the file of a right image that is not among the hits, shown after them.
    """

    text: str
    hits: Sequence[SearchHit]
    relevant: Collection[str] | None = None
    heading: str = ""
    missed: Path | None = None


def is_right(hit: SearchHit, relevant: Collection[str] | None) -> bool | None:
    """None: not known."""
    return None if relevant is None else hit.id in relevant


def plot_result_rows(rows: Sequence[ResultRow]) -> Figure:
    """Each text over its ranked images, with rank and score under them; "2 → 1" is what SCA did to a rank.

        hits = [SearchHit.of_image("one", 1, 4.1, "1.jpg"), SearchHit.of_image("two", 2, -0.3, "2.jpg")]
        figure = plot_result_rows([ResultRow("a man lying on the road", hits, relevant={"two"})])
        save_figure(figure, "answer.png")

    A right image has a thick green frame and a tick, a wrong one that was ranked before it a red frame, all
    others a grey one. An image that cannot be read becomes a placeholder.

    Raises:
        ValueError: no row, or a row without images.
    """
    if not rows or not all(row.hits for row in rows):
        raise ValueError("there is nothing to show: give at least one row, and every row an image")
    images = [[open_or_none(hit.image) for hit in row.hits] for row in rows]
    for row, opened in zip(rows, images, strict=True):
        if row.missed is not None:
            opened.append(open_or_none(partial(load_image, row.missed)))
    box = box_for([image for opened in images for image in opened], IMAGE_HEIGHT, NARROWEST, WIDEST)
    text_width = max(LEAST_TEXT_WIDTH, max(map(len, images)) * (box + GAP) - GAP)
    texts = [Paragraph.fit(row.text, text_width) for row in rows]
    labelled = any(
        row.missed is not None or bool(is_right(hit, row.relevant)) for row in rows for hit in row.hits
    )
    filmed = any(hit.moment for row in rows for hit in row.hits)
    heights = [
        (HEADING_HEIGHT if row.heading else 0)
        + (text.height + PADDING)
        + (IMAGE_HEIGHT + PADDING)
        + CAPTION_HEIGHT * (1 + labelled + filmed)
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
    shown = [(caption(hit), is_right(hit, row.relevant)) for hit in row.hits]
    shown += [] if row.missed is None else [("", True)]
    if row.heading:
        colour = {True: RIGHT, False: WRONG, None: QUIET}[shown[0][1]]
        heading = Paragraph.fit(row.heading, sheet.width - 2 * MARGIN, CAPTION_SIZE, max_lines=1)
        sheet.paragraph(heading, MARGIN, top, color=colour, weight="bold")
        top += HEADING_HEIGHT
    sheet.paragraph(text, MARGIN, top)
    top += text.height + PADDING
    found = False
    for place, ((words, right), image) in enumerate(zip(shown, images, strict=True)):
        found = found or bool(right)
        left = MARGIN + place * (box + GAP)
        draw_ranked(sheet, words, right, image, left, top, box, IMAGE_HEIGHT, before_the_right_one=not found)
        moment = row.hits[place].moment if place < len(row.hits) else None
        if moment is not None:
            camera = Paragraph.fit(moment.camera, box, CAPTION_SIZE, max_lines=1).lines[0]
            below = top + IMAGE_HEIGHT + PADDING + CAPTION_HEIGHT * (2 if right else 1)
            sheet.caption(camera, left, below, box, color=QUIET)


def caption(hit: SearchHit) -> str:
    """Its rank, the one before SCA as well where that moved it, its score, and of a film when."""
    parts = [f"{hit.rank_before_sca} → {hit.rank}" if hit.is_moved else f"{hit.rank}"]
    if hit.score is not None:
        parts.append(f"{hit.score:.2f}".replace("-", "−"))
    if hit.moment is not None:
        parts.append(clock(hit.moment.start_s))
    return " · ".join(parts)


def draw_ranked(
    sheet: Sheet,
    words: str,
    right: bool | None,
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
    if right:
        frame = RIGHT
    elif right is False and before_the_right_one:
        frame = WRONG
    sheet.image(image, left, top, width, height, frame=frame, frame_width=3.0 if right else 1.2)
    below = top + height + PADDING
    sheet.caption(words, left, below, width, color=QUIET)
    if right:
        sheet.caption("✓ right", left, below + CAPTION_HEIGHT, width, color=RIGHT, weight="bold")
