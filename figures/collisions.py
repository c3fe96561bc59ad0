"""What SCA or a relative of it changed: who kept an image that two texts claimed, and who moved on."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..sca import SCAResult
from .results import CAPTION_HEIGHT, draw_ranked
from .sheet import (
    CAPTION_SIZE,
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

MARGIN, GAP, BETWEEN_ROWS = 0.2, 0.16, 0.3  # inches
IMAGE_HEIGHT, NARROWEST, WIDEST = 1.3, 0.75, 1.6
TEXT_WIDTH, ARROW_WIDTH, BETWEEN_SIDES = 2.3, 0.3, 0.4
HEADING_HEIGHT = CAPTION_HEIGHT + 0.1


@dataclass(frozen=True)
class Move:
    """A query that was moved from one first answer to another.

    Attributes:
        query: its row.
        claimed, taken: its first answer before and after.
        holder: the row of the query whose first answer `claimed` is now; of several the one with the highest
            score; None: nobody's, or one that did not have it among its best before.
    """

    query: int
    claimed: Hashable
    taken: Hashable
    holder: int | None


def find_moves(
    before: Sequence[Sequence[Hashable]],
    scores: Sequence[Sequence[float]],
    after: Sequence[Sequence[Hashable]],
) -> list[Move]:
    """The queries whose first answer changed, in their order.

    Args:
        before: each query's images, best first, as ids or indices.
        scores: their scores.
        after: the same lists once they are resolved; only the first image of each is looked at.
    """
    now: dict[Hashable, list[int]] = {}
    for query, row in enumerate(after):
        now.setdefault(row[0], []).append(query)
    moves = []
    for query, (row, reranked) in enumerate(zip(before, after, strict=True)):
        claimed, taken = row[0], reranked[0]
        if claimed == taken:
            continue
        claims = {
            other: scores[other][list(before[other]).index(claimed)]
            for other in now.get(claimed, ())
            if claimed in before[other]
        }
        moves.append(Move(query, claimed, taken, max(claims, key=claims.__getitem__, default=None)))
    return moves


@dataclass(frozen=True)
class ResolvedCollision:
    """A `Move` with what can be seen of it; without a holder, `holder` and `kept` are None."""

    text: str
    before: RankedImage
    after: RankedImage
    holder: str | None = None
    kept: RankedImage | None = None
    outcome: str = ""


def resolved_collisions(
    texts: Sequence[str],
    scores: Any,
    reranked: SCAResult,
    images: Sequence[ImageSource],
    relevant: Sequence[Collection[int]] | None = None,
) -> list[ResolvedCollision]:
    """What `sca_rerank` moved, ready to be drawn, in the order of the texts.

        reranked = sca_rerank(None, scores, top_k=10)
        plot_collisions(resolved_collisions(texts, scores, reranked, images))

    Args:
        scores: (Q, G), those that were reranked, a number for each image.
        reranked: their re-ranking, over all G images.
        images: G of them.
        relevant: each text's right images, as indices; None: not known.
    """
    scores = np.asarray(scores)
    order = np.argsort(-scores, axis=1, kind="stable")
    before, descending = order.tolist(), np.take_along_axis(scores, order, axis=1).tolist()
    after = np.asarray(reranked.indices).tolist()

    def ranked(query: int, image: int) -> RankedImage:
        right = None if relevant is None else image in relevant[query]
        rank = before[query].index(image) + 1
        return RankedImage(images[image], float(scores[query, image]), right, rank)

    collisions = []
    for move in find_moves(before, descending, after):
        claimed, taken = ranked(move.query, move.claimed), ranked(move.query, move.taken)
        outcome = ""
        if relevant is not None:
            spoilt_or_not = "spoilt" if claimed.right else "wrong before and after"
            outcome = "corrected" if taken.right else spoilt_or_not
        holder = None if move.holder is None else texts[move.holder]
        kept = None if move.holder is None else ranked(move.holder, move.claimed)
        collisions.append(ResolvedCollision(texts[move.query], claimed, taken, holder, kept, outcome))
    return collisions


def plot_collisions(collisions: Sequence[ResolvedCollision]) -> Figure:
    """For each collision: the text that keeps the image; the one that moves on, before and after.

    Frames are green where an image is right for the text beside it, and red where it is known not to be.

    Raises:
        ValueError: there is no collision to show.
    """
    if not collisions:
        raise ValueError("there is no collision to show: nothing was moved")
    images = [
        [
            None if ranked is None else open_or_none(ranked.image)
            for ranked in (one.kept, one.before, one.after)
        ]
        for one in collisions
    ]
    box = box_for([image for row in images for image in row], IMAGE_HEIGHT, NARROWEST, WIDEST)
    pair = 2 * box + ARROW_WIDTH + 2 * GAP
    right_side = MARGIN + box + GAP + TEXT_WIDTH + BETWEEN_SIDES
    image_block = IMAGE_HEIGHT + PADDING + 2 * CAPTION_HEIGHT
    texts = [
        (
            None if one.holder is None else Paragraph.fit(one.holder, TEXT_WIDTH, 9, max_lines=10),
            Paragraph.fit(one.text, TEXT_WIDTH, 9, max_lines=10),
        )
        for one in collisions
    ]
    heights = [
        HEADING_HEIGHT + max(image_block, *(text.height for text in pairs if text is not None))
        for pairs in texts
    ]
    sheet = Sheet(
        right_side + pair + GAP + TEXT_WIDTH + MARGIN,
        sum(heights) + BETWEEN_ROWS * (len(collisions) - 1) + 2 * MARGIN,
    )
    top = MARGIN
    for one, (holder_text, text), opened, height in zip(collisions, texts, images, heights, strict=True):
        if top > MARGIN:
            sheet.rule(top - BETWEEN_ROWS / 2, MARGIN)
        below = top + HEADING_HEIGHT
        if one.kept is not None and holder_text is not None:
            _heading(sheet, "keeps the image", MARGIN, top)
            draw_ranked(sheet, one.kept, opened[0], MARGIN, below, box, IMAGE_HEIGHT)
            sheet.paragraph(holder_text, MARGIN + box + GAP, below, TEXT_WIDTH)
        outcome = f": {one.outcome}" if one.outcome else ""
        colour = {True: RIGHT, False: WRONG, None: QUIET}[one.after.right]
        _heading(sheet, f"wanted it too and moves on{outcome}", right_side, top, colour)
        left = right_side
        draw_ranked(sheet, one.before, opened[1], left, below, box, IMAGE_HEIGHT)
        left += box + GAP
        sheet.arrow(left, below + IMAGE_HEIGHT / 2, ARROW_WIDTH)
        left += ARROW_WIDTH + GAP
        draw_ranked(sheet, one.after, opened[2], left, below, box, IMAGE_HEIGHT)
        sheet.paragraph(text, left + box + GAP, below, TEXT_WIDTH)
        top += height + BETWEEN_ROWS
    return sheet.figure


def _heading(sheet: Sheet, text: str, left: float, top: float, colour: str = QUIET) -> None:
    heading = Paragraph.fit(text, 2 * TEXT_WIDTH, CAPTION_SIZE, max_lines=1)
    sheet.paragraph(heading, left, top, 2 * TEXT_WIDTH, color=colour, weight="bold")
