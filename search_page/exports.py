"""A search's result as files: a CSV table, the lines of a challenge's answer file, an image of them."""

import csv
import io
from collections.abc import Callable
from pathlib import PurePosixPath

from ..data.challenge import ANSWERS, answer_lines
from ..figures.results import ResultRow, plot_result_rows
from ..figures.saving import DOTS_PER_INCH
from ..search.hits import SearchHit, SearchResult
from .labels import ImageLabel

SHEET_IMAGES = 6  # of each text
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n")

COLUMNS = (
    "text_number",
    "text",
    "rank",
    "image",
    "collection",
    "score",
    "match_logit",
    "cosine",
    "rank_by_embedding",
    "rank_before_sca",
    "behaviour",
    "action",
    "scene",
)


def csv_table(result: SearchResult, label_of: Callable[[SearchHit], ImageLabel | None]) -> str:
    """One line for each image of each answer; what is unknown is left empty.

    Texts, names and labels come from anyone, and a spreadsheet would run what looks like a formula.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, (text, hits) in enumerate(zip(result.texts, result, strict=True), start=1):
        for hit in hits:
            fields = [number, text, *_fields(hit, label_of(hit))]
            writer.writerow([_as_text(field) if isinstance(field, str) else field for field in fields])
    return stream.getvalue()


def answer_file(result: SearchResult) -> str:
    """The content of a challenge's answer file: of each text the ten best images' names.

    Raises:
        ValueError: these answers cannot be such a file; says why.
    """
    if result.similar_to is not None:
        raise ValueError("an answer file holds answers to texts")
    best = [hits[:ANSWERS] for hits in result]
    if any(hit.extra is not None for hits in best for hit in hits):
        raise ValueError("an answer file names images of the gallery only, not your own")
    if any(len(hits) < ANSWERS for hits in best):
        raise ValueError(f"an answer file names {ANSWERS} images for each text, and fewer are shown")
    names = {hit.id: PurePosixPath(hit.id).stem for hits in best for hit in hits}
    if any(name.split() != [name] for name in names.values()):
        raise ValueError("an image with a space in its name cannot stand in an answer file")
    if len(set(names.values())) < len(names):
        raise ValueError("two of the images share a name, which an answer file cannot tell apart")
    return answer_lines([[names[hit.id] for hit in hits] for hits in best])


def image_sheet(result: SearchResult) -> bytes:
    """Each text over its best images with their ranks and scores, as PNG."""
    rows = [ResultRow(text, hits[:SHEET_IMAGES]) for text, hits in zip(result.texts, result, strict=True)]
    stream = io.BytesIO()
    plot_result_rows(rows).savefig(stream, format="png", dpi=DOTS_PER_INCH)
    return stream.getvalue()


def _fields(hit: SearchHit, label: ImageLabel | None) -> list[object]:
    return [
        hit.rank,
        hit.id,
        "gallery" if hit.extra is None else "own",
        _rounded(hit.score),
        _rounded(hit.match_logit),
        _rounded(hit.cosine),
        hit.embedding_rank,
        hit.rank_before_sca,
        label and label.behaviour,
        label and label.action,
        label and label.scene,
    ]


def _as_text(value: str) -> str:
    """Text that a spreadsheet shows and does not compute: before a formula stands an apostrophe."""
    return f"'{value}" if value.startswith(FORMULA_SIGNS) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
