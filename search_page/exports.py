"""A session's answers as files: a CSV table, and the lines of a challenge's answer file."""

import csv
import io
from collections.abc import Sequence
from pathlib import PurePosixPath

from tpas.challenge import ANSWERS, answer_lines
from tpas.search_page.desk import Answer, RankedPicture

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
    """One line for each picture of each answer; what is unknown is left empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, answer in enumerate(answers, start=1):
        for found in answer.pictures:
            writer.writerow([number, answer.text, *_fields(found)])
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


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
