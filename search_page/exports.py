"""A session's answers as files: a CSV table, the lines of a challenge's answer file, an image of them."""

import csv
import io
from collections.abc import Sequence
from pathlib import PurePosixPath

from PIL import Image

from ..data.challenge import ANSWERS, answer_lines
from ..figures.results import ResultRow, plot_result_rows
from ..figures.saving import DOTS_PER_INCH
from ..search.hits import SearchHit
from .desk import Answer, RankedImage, SearchRequests

SHEET_IMAGES = 6  # of each text
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n")

COLUMNS = (
    "text_number",
    "text",
    "rank",
    "image",
    "collection",
    "match_probability",
    "match_logit",
    "cosine",
    "rank_by_embedding",
    "rank_before_sca",
    "behaviour",
    "action",
    "scene",
)


def csv_table(answers: Sequence[Answer]) -> str:
    """One line for each image of each answer; what is unknown is left empty.

    Texts, names and labels come from anyone, and a spreadsheet would run what looks like a formula.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, answer in enumerate(answers, start=1):
        for found in answer.images:
            fields = [number, answer.text, *_fields(found)]
            writer.writerow([_as_text(field) if isinstance(field, str) else field for field in fields])
    return stream.getvalue()


def answer_file(answers: Sequence[Answer]) -> str:
    """The content of a challenge's answer file: of each text the ten best images' names.

    Raises:
        ValueError: these answers cannot be such a file; says why.
    """
    if any(answer.similar_to for answer in answers):
        raise ValueError("an answer file holds answers to texts")
    best = [[found.image for found in answer.images[:ANSWERS]] for answer in answers]
    if any(image.private is not None for images in best for image in images):
        raise ValueError("an answer file names images of the gallery only, not your own")
    if any(len(images) < ANSWERS for images in best):
        raise ValueError(f"an answer file names {ANSWERS} images for each text, and fewer are shown")
    names = {image.id: PurePosixPath(image.id).stem for images in best for image in images}
    if any(name.split() != [name] for name in names.values()):
        raise ValueError("an image with a space in its name cannot stand in an answer file")
    if len(set(names.values())) < len(names):
        raise ValueError("two of the images share a name, which an answer file cannot tell apart")
    return answer_lines([[names[image.id] for image in images] for images in best])


def image_sheet(answers: Sequence[Answer], desk: SearchRequests) -> bytes:
    """Each text over its best images with their ranks and scores, as PNG."""
    rows = []
    for answer in answers:
        best = answer.images[:SHEET_IMAGES]
        rows.append(ResultRow(answer.text, [_drawn(found, desk.card(found.image)) for found in best]))
    stream = io.BytesIO()
    plot_result_rows(rows).savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()


def _drawn(found: RankedImage, jpeg: bytes | None) -> SearchHit:
    score = found.cosine if found.match_logit is None else found.match_logit
    if jpeg is None:
        return SearchHit(found.image.id, found.rank, score)
    return SearchHit.of_image(found.image.id, found.rank, score, Image.open(io.BytesIO(jpeg)))


def _fields(found: RankedImage) -> list[object]:
    image, label = found.image, found.image.label
    return [
        found.rank,
        image.id,
        "gallery" if image.private is None else "own",
        _rounded(found.match_probability),
        _rounded(found.match_logit),
        _rounded(found.cosine),
        found.embedding_rank,
        found.rank_before_sca,
        label and label.behaviour,
        label and label.action,
        label and label.scene,
    ]


def _as_text(value: str) -> str:
    """Text that a spreadsheet shows and does not compute: before a formula stands an apostrophe."""
    return f"'{value}" if value.startswith(FORMULA_SIGNS) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
