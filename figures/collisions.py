"""What SCA or a relative of it changed: who kept an image that two texts claimed, and who moved on."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..sca import SCAResult
from ..search.hits import SearchHit
from .results import CAPTION_HEIGHT, caption, draw_ranked, is_right
from .sheet import (
    BETWEEN_ROWS,
    CAPTION_SIZE,
    GAP,
    MARGIN,
    PADDING,
    QUIET,
    RIGHT,
    WRONG,
    Paragraph,
    Sheet,
    box_for,
    open_or_none,
)

IMAGE_HEIGHT, NARROWEST, WIDEST = 1.3, 0.75, 1.6
TEXT_WIDTH, ARROW_WIDTH, BETWEEN_SIDES = 2.3, 0.3, 0.4
HEADING_HEIGHT = CAPTION_HEIGHT + 0.1


@dataclass(frozen=True)
class Collision:
    """A query that was moved from one first answer to another.

    Attributes:
        query: its row.
        claimed, taken: its first answer before and after, both as it ranked them before.
        holder: the row of the query whose first answer the claimed image is now; of several the one with the
            highest score; None: nobody's, or one that did not have it among its best before.
        kept: that image, as the holder ranked it before.
    """

    query: int
    claimed: SearchHit
    taken: SearchHit
    holder: int | None = None
    kept: SearchHit | None = None


def sca_outcome(claimed: SearchHit, taken: SearchHit, relevant: Collection[str]) -> str:
    """What a move from one first answer to another did to a query with these right images.

    Where both are right nothing is lost: that counts as "corrected".
    """
    if taken.id in relevant:
        return "corrected"
    return "spoilt" if claimed.id in relevant else "wrong before and after"


def find_collisions(
    before: Sequence[Sequence[SearchHit]], after: Sequence[Sequence[SearchHit]]
) -> list[Collision]:
    """The queries whose first answer changed, in their order.

    Args:
        before: each query's images, best first.
        after: the same once SCA has re-ranked them; only the first image of each is looked at.
    """
    holders: dict[str, list[int]] = {}
    for query, row in enumerate(after):
        holders.setdefault(row[0].id, []).append(query)
    collisions = []
    for query, (row, reranked) in enumerate(zip(before, after, strict=True)):
        claimed = row[0]
        if claimed.id == reranked[0].id:
            continue
        taken = next((hit for hit in row if hit.id == reranked[0].id), reranked[0])
        claims = {
            other: hit
            for other in holders.get(claimed.id, ())
            for hit in before[other]
            if hit.id == claimed.id
        }
        # What SCA resolves has a score.
        holder = max(claims, key=lambda other: claims[other].score or 0.0, default=None)
        kept = None if holder is None else claims[holder]
        collisions.append(Collision(query, claimed, taken, holder, kept))
    return collisions


def resolved_collisions(
    scores: Any, reranked: SCAResult, images: Sequence[Image.Image | str | Path]
) -> list[Collision]:
    """What `sca_rerank` moved; an image's id is its column.

        reranked = sca_rerank(None, scores, top_k=10)
        plot_collisions(resolved_collisions(scores, reranked, images), texts)

    Args:
        scores: (Q, G), those that were re-ranked, a number for each image.
        reranked: what became of each query's best K.
        images: G of them.
    """
    scores, after = np.asarray(scores), np.asarray(reranked.indices)
    before = np.argsort(-scores, axis=1, kind="stable")[:, : after.shape[1]]

    def hits(query: int, columns: np.ndarray) -> list[SearchHit]:
        return [
            SearchHit.of_image(str(column), rank, float(scores[query, column]), images[column])
            for rank, column in enumerate(columns.tolist(), start=1)
        ]

    return find_collisions(
        [hits(query, row) for query, row in enumerate(before)],
        [hits(query, row[:1]) for query, row in enumerate(after)],
    )


def plot_collisions(
    collisions: Sequence[Collision],
    texts: Sequence[str],
    relevant: Sequence[Collection[str]] | None = None,
) -> Figure:
    """For each collision: the text that keeps the image; the one that moves on, before and after.

    Frames are green where an image is right for the text beside it, and red where it is known not to be.

    Args:
        texts: those of all queries.
        relevant: the ids of each query's right images; None: not known.

    Raises:
        ValueError: there is no collision to show.
    """
    if not collisions:
        raise ValueError("there is no collision to show: nothing was moved")
    images = [
        [None if hit is None else open_or_none(hit.image) for hit in (one.kept, one.claimed, one.taken)]
        for one in collisions
    ]
    box = box_for([image for row in images for image in row], IMAGE_HEIGHT, NARROWEST, WIDEST)
    right_side = MARGIN + box + GAP + TEXT_WIDTH + BETWEEN_SIDES
    width = right_side + 2 * box + ARROW_WIDTH + 3 * GAP + TEXT_WIDTH + MARGIN
    rows = [[row for row in (one.query, one.holder) if row is not None] for one in collisions]
    paragraphs = {
        row: Paragraph.fit(texts[row], TEXT_WIDTH, 9, max_lines=10) for both in rows for row in both
    }
    image_block = IMAGE_HEIGHT + PADDING + 2 * CAPTION_HEIGHT
    heights = [HEADING_HEIGHT + max(image_block, *(paragraphs[row].height for row in both)) for both in rows]
    sheet = Sheet(width, sum(heights) + BETWEEN_ROWS * (len(collisions) - 1) + 2 * MARGIN)

    def draw(hit: SearchHit, row: int, image: Image.Image | None, left: float, top: float) -> None:
        right = is_right(hit, None if relevant is None else relevant[row])
        draw_ranked(sheet, caption(hit), right, image, left, top, box, IMAGE_HEIGHT)

    top = MARGIN
    for one, (kept, claimed, taken), height in zip(collisions, images, heights, strict=True):
        if top > MARGIN:
            sheet.rule(top - BETWEEN_ROWS / 2, MARGIN)
        below = top + HEADING_HEIGHT
        if one.kept is not None and one.holder is not None:
            _heading(sheet, "keeps the image", MARGIN, top)
            draw(one.kept, one.holder, kept, MARGIN, below)
            sheet.paragraph(paragraphs[one.holder], MARGIN + box + GAP, below)
        outcome, colour = "", QUIET
        if relevant is not None:
            outcome = f": {sca_outcome(one.claimed, one.taken, relevant[one.query])}"
            colour = RIGHT if is_right(one.taken, relevant[one.query]) else WRONG
        _heading(sheet, f"wanted it too and moves on{outcome}", right_side, top, colour)
        draw(one.claimed, one.query, claimed, right_side, below)
        left = right_side + box + GAP
        sheet.arrow(left, below + IMAGE_HEIGHT / 2, ARROW_WIDTH)
        left += ARROW_WIDTH + GAP
        draw(one.taken, one.query, taken, left, below)
        sheet.paragraph(paragraphs[one.query], left + box + GAP, below)
        top += height + BETWEEN_ROWS
    return sheet.figure


def _heading(sheet: Sheet, text: str, left: float, top: float, colour: str = QUIET) -> None:
    heading = Paragraph.fit(text, 2 * TEXT_WIDTH, CAPTION_SIZE, max_lines=1)
    sheet.paragraph(heading, left, top, color=colour, weight="bold")
