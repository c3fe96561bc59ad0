"""A session's answers as files: a CSV table, the lines of a challenge's answer file, a picture of them."""

import csv
import io
from collections.abc import Sequence
from pathlib import PurePosixPath

from PIL import Image

from ..data.challenge import ANSWERS, answer_lines
from ..figures.results import ResultRow, plot_result_rows
from ..figures.saving import DOTS_PER_INCH
from ..figures.sheet import RankedPicture as DrawnPicture
from .desk import Answer, RankedPicture, SearchDesk

SHEET_PICTURES = 6  # of each sentence
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n")

COLUMNS = (
    "sentence_number",
    "sentence",
    "rank",
    "picture",
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
    """One line for each picture of each answer; what is unknown is left empty.

    Sentences, names and labels come from anyone, and a spreadsheet would run what looks like a formula.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, answer in enumerate(answers, start=1):
        for found in answer.pictures:
            fields = [number, answer.text, *_fields(found)]
            writer.writerow([_as_text(field) if isinstance(field, str) else field for field in fields])
    return stream.getvalue()


def answer_file(answers: Sequence[Answer]) -> str:
    """The content of a challenge's answer file: of each sentence the ten best pictures' names.

    Raises:
        ValueError: these answers cannot be such a file; says why.
    """
    if any(answer.similar_to for answer in answers):
        raise ValueError("an answer file holds answers to sentences")
    best = [[found.picture for found in answer.pictures[:ANSWERS]] for answer in answers]
    if any(picture.private is not None for pictures in best for picture in pictures):
        raise ValueError("an answer file names pictures of the gallery only, not your own")
    if any(len(pictures) < ANSWERS for pictures in best):
        raise ValueError(f"an answer file names {ANSWERS} pictures for each sentence, and fewer are shown")
    names = {picture.id: PurePosixPath(picture.id).stem for pictures in best for picture in pictures}
    if any(name.split() != [name] for name in names.values()):
        raise ValueError("a picture with a space in its name cannot stand in an answer file")
    if len(set(names.values())) < len(names):
        raise ValueError("two of the pictures share a name, which an answer file cannot tell apart")
    return answer_lines([[names[picture.id] for picture in pictures] for pictures in best])


def picture_sheet(answers: Sequence[Answer], desk: SearchDesk) -> bytes:
    """Each sentence over its best pictures with their ranks and scores, as PNG."""
    rows = []
    for answer in answers:
        best = answer.pictures[:SHEET_PICTURES]
        rows.append(ResultRow(answer.text, [_drawn(found, desk.card(found.picture)) for found in best]))
    stream = io.BytesIO()
    plot_result_rows(rows).savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()


def _drawn(found: RankedPicture, jpeg: bytes | None) -> DrawnPicture:
    image = None if jpeg is None else Image.open(io.BytesIO(jpeg))
    score = found.cosine if found.match_logit is None else found.match_logit
    return DrawnPicture(image, score, rank=found.rank)


def _fields(found: RankedPicture) -> list[object]:
    picture, label = found.picture, found.picture.label
    return [
        found.rank,
        picture.id,
        "gallery" if picture.private is None else "own",
        _rounded(found.match_probability),
        _rounded(found.match_logit),
        _rounded(found.cosine),
        found.embedding_rank,
        found.rank_before_settling,
        label and label.behaviour,
        label and label.action,
        label and label.scene,
    ]


def _as_text(value: str) -> str:
    """Text that a spreadsheet shows and does not compute: before a formula stands an apostrophe."""
    return f"'{value}" if value.startswith(FORMULA_SIGNS) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
