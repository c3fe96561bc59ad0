"""TREC's files, as trec_eval, ir-measures and ranx read them: runs, which rank images, and relevance (qrels).

A line of a run is `query Q0 image rank score tag`, between white space. As in trec_eval the scores alone say
the order, whatever the ranks and the order of the lines: the greater score comes first, and of equal ones the
name that comes later in the order of bytes. (trec_eval keeps scores in single precision; so that the
order is the same there, none is written that only double precision tells from its neighbour.)
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.text_files import lines_of, read_text

LARGEST_RUN = 2**28  # bytes; Python takes some fifteen times as much
TAG = "tpas"  # the name of the system, in the last column
FIELDS = ("query", "Q0", "image", "rank", "score", "tag")


def read_run(path: Path, largest: int) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    """The lists of a run, scores (Q, K) and indices (Q, K), with the names of queries and images in the order
    in which they come.

    The end of a list that is shorter than others is made of images that it lacks, at minus infinity.

    Args:
        largest: bytes that both may take.

    Raises:
        ValueError: a line that is none, or an image that a query lists twice; names the line.
    """
    lists: dict[str, dict[str, tuple[float, int]]] = {}  # by query, by image: the score, and its line
    for number, line in enumerate(lines_of(read_text(path, LARGEST_RUN)), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != len(FIELDS):
            raise ValueError(
                f"line {number}: a run has {len(FIELDS)} fields a line ({' '.join(FIELDS)}), got "
                f"{len(fields)}: {line[:80]!r}"
            )
        query, _, image, _, written, _ = fields
        try:
            score = float(written)
        except ValueError:
            raise ValueError(f"line {number}: the score must be a number, got {written!r}") from None
        if math.isnan(score) or score == math.inf:
            raise ValueError(
                f"line {number}: the score is {written}: it must be finite, or -inf where nothing was scored"
            )
        listed = lists.setdefault(query, {})
        if image in listed:
            raise ValueError(
                f"line {number}: query {query!r} lists {image!r} again, as in line {listed[image][1]}"
            )
        listed[image] = score, number
    if not lists:
        raise ValueError("the run has no line")
    place: dict[str, int] = {}
    for listed in lists.values():
        for image in listed:
            place.setdefault(image, len(place))
    longest = max(map(len, lists.values()))
    if (size := 16 * len(lists) * longest) > largest:
        raise ValueError(
            f"{len(lists):,} lists as long as the longest, of {longest:,} images, take {size:,} bytes, and "
            f"at most {largest:,} are read: cut the longest ones"
        )
    scores = np.full((len(lists), longest), -np.inf)
    indices = np.empty((len(lists), longest), dtype=np.int64)
    for row, listed in enumerate(lists.values()):
        by_name = sorted(listed, reverse=True)
        ranked = sorted(by_name, key=lambda image: -listed[image][0])  # noqa: B023 (called at once)
        columns = [place[image] for image in ranked]
        indices[row, : len(columns)] = columns
        if len(columns) < longest:
            is_lacking = np.ones(len(place), dtype=bool)
            is_lacking[columns] = False
            indices[row, len(columns) :] = np.flatnonzero(is_lacking)[: longest - len(columns)]
        scores[row, : len(ranked)] = [listed[image][0] for image in ranked]
    return {"scores": scores, "indices": indices}, tuple(lists), tuple(place)


def run_lines(
    images: np.ndarray,
    scores: np.ndarray,
    scored: np.ndarray,
    query_ids: Sequence[str],
    gallery_ids: Sequence[str],
) -> Iterator[str]:
    """The lines of a run that ranks as the lists `images` (Q, K) do.

    Each image keeps its score (Q, K), but where that does not say the list's order, as that of an answer
    which a re-ranker has put first, and as some equal ones: there it is the next above that of the image
    behind.

    Args:
        scored: (Q,) how many of each row are written.

    Raises:
        ValueError: a name that holds white space, or a score beyond single precision.
    """
    for kind, ids in (("query", query_ids), ("image", gallery_ids)):
        for name in ids:
            if len(name.split()) != 1 or name != name.strip():
                raise ValueError(
                    f"{kind} {name!r} holds white space, which divides the fields of a run: write .npz or "
                    ".safetensors"
                )
    if np.abs(scores[np.isfinite(scores)]).max(initial=0) > np.finfo(np.float32).max:
        raise ValueError("a score is beyond single precision, in which those of a run are read")
    for row, query in enumerate(query_ids):
        columns: list[int] = images[row, : scored[row]].tolist()
        names = [gallery_ids[column] for column in columns]
        values = _saying_the_order(scores[row, : scored[row]], names)
        for rank, (name, value) in enumerate(zip(names, values, strict=True), start=1):
            yield f"{query} Q0 {name} {rank} {value!s} {TAG}\n"


def _saying_the_order(scores: np.ndarray, names: Sequence[str]) -> list[np.number]:
    """Scores (K,) by which the names rank as they stand, in single precision too."""
    values = list(scores)
    single = scores.astype(np.float32)
    for place in range(len(values) - 2, -1, -1):
        behind = single[place + 1]
        rises = single[place] < behind
        if rises or (single[place] == behind and names[place].encode() < names[place + 1].encode()):
            values[place] = single[place] = np.nextafter(behind, np.float32(np.inf))
    return values


def qrels_lines(query_ids: Sequence[str], relevant: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a file of relevance: `query 0 image 1` for each right image of each query."""
    for query, images in zip(query_ids, relevant, strict=True):
        for image in images:
            yield f"{query} 0 {image} 1\n"
