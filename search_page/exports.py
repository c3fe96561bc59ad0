"""A search's result as files: a CSV table, the lines of a challenge's answer file, an image of them."""

import csv
import io
import re
import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath

from ..data.challenge import ANSWERS, answer_lines
from ..figures.saving import DOTS_PER_INCH
from ..search.hits import SearchHit, SearchResult
from .labels import ImageLabel

SHEET_IMAGES = 6  # of each text
FORMULA_SIGNS = frozenset("=+-@\N{MINUS SIGN}")
# What is no part of a cell, or is not seen in it: a spreadsheet may trim it off.
UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Me", "Mn", "Zl", "Zp", "Zs"})
# A quote is doubled, which begins and ends an empty cell where a sign other than the comma parts cells.
UNSEEN_LETTERS = frozenset('"\u115f\u1160\u2800\u3164\uffa0')
CELL_END = re.compile("([;\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029])")  # for one spreadsheet or another

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
    "camera",
    "start_s",
    "end_s",
    "started",
)


def csv_table(result: SearchResult, label_of: Callable[[SearchHit], ImageLabel | None]) -> str:
    """One line for each image of each answer; what is unknown is left empty.

    Behind `COLUMNS` are two for each phrase of `must` and `must_not`: what it says of the image by itself.

    Texts, names and labels come from anyone, and a spreadsheet would run what looks like a formula.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    phrases = list(
        dict.fromkeys((said.wanted, said.phrase) for hits in result for hit in hits for said in hit.phrases)
    )
    named = [f"{'must' if wanted else 'must_not'}: {phrase}" for wanted, phrase in phrases]
    of_phrases = [f"{name} ({score})" for name in named for score in ("match_logit", "cosine")]
    writer.writerow([*COLUMNS, *map(as_cell_text, of_phrases)])
    for number, (text, hits) in enumerate(zip(result.texts, result, strict=True), start=1):
        for hit in hits:
            said = {(of.wanted, of.phrase): (of.match_logit, of.cosine) for of in hit.phrases}
            scores = [_rounded(score) for phrase in phrases for score in said.get(phrase, (None, None))]
            fields = [number, text, *_fields(hit, label_of(hit)), *scores]
            writer.writerow([as_cell_text(field) if isinstance(field, str) else field for field in fields])
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
        raise ValueError(f"an answer file names {ANSWERS} images for each text, and there are fewer")
    names = {hit.id: PurePosixPath(hit.id).stem for hits in best for hit in hits}
    if any(name.split() != [name] for name in names.values()):
        raise ValueError("an image with a space in its name cannot stand in an answer file")
    if len(set(names.values())) < len(names):
        raise ValueError("two of the images share a name, which an answer file cannot tell apart")
    return answer_lines([[names[hit.id] for hit in hits] for hits in best])


def image_sheet(result: SearchResult) -> bytes:
    """Each text over its best images with their ranks and scores, as PNG."""
    from ..figures.results import ResultRow, plot_result_rows  # the page opens without matplotlib

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
        hit.moment and hit.moment.camera,
        hit.moment and round(hit.moment.start_s, 3),
        hit.moment and round(hit.moment.end_s, 3),
        hit.moment and hit.moment.started and hit.moment.started.isoformat(timespec="seconds"),
    ]


def as_cell_text(value: str) -> str:
    """Text that a spreadsheet shows and does not compute: before what begins like a formula is an apostrophe.

    A formula may begin the text, or a part that some spreadsheet takes for a cell of its own; its sign may be
    of full width, or stand behind what is trimmed or not seen.
    """
    cells = CELL_END.split(value)  # each second one is what parts two
    if value and not cells[0]:
        cells[0] = "'"
    return "".join(f"'{cell}" if _begins_formula(cell) else cell for cell in cells)


def _begins_formula(cell: str) -> bool:
    first = next((char for char in cell if not _is_unseen(char)), "")
    return unicodedata.normalize("NFKC", first)[:1] in FORMULA_SIGNS


def _is_unseen(char: str) -> bool:
    return unicodedata.category(char) in UNSEEN_CATEGORIES or char in UNSEEN_LETTERS


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
