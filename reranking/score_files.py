"""Score files: what one system thinks of the images of a gallery, for each of many queries, with their names.

A file is `.npz` (numpy) or `.safetensors` and holds

    scores       (Q, G) every image's score, or (Q, K) those of each query's K candidates, descending
    indices      (Q, K) integers, the candidates' positions in `gallery_ids`; absent where scores are dense
    query_ids    Q distinct strings
    gallery_ids  G distinct strings
    moved        (Q,) bool, optional: a re-ranker put the row's first answer there, so only the rest descends

In `.npz` the ids are arrays of strings; in `.safetensors`, which has no strings, they are JSON lists in the
file's metadata, under the same names. `.trec` and `.run` are runs of TREC, whose lists may differ in length
(`trec_files.py`). Higher scores are better. Scores are finite, or minus infinity where
nothing was scored, which comes last in a list; what else fills up a matrix, such as -100, is found by those
who read it ([`tpas.sca.filling_of`]). Nothing in a file is ever executed.
"""

import json
import math
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..data.annotation_fields import LONGEST_PATH
from ..data.whole_files import replacing
from ..sca import best_columns, scored_candidates
from .ranked_lists import in_tie_order
from .trec_files import read_run, run_lines

RUNS = (".trec", ".run")
SUFFIXES = (".npz", ".safetensors", *RUNS)
_ARRAYS = ("scores", "indices", "moved")
_IDS = ("query_ids", "gallery_ids")
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Once unpacked. PAB's queries and the challenge's gallery, dense in float64, are 0.6 gigabytes.
LARGEST_CONTENT = 2**32
# Python takes some 4 gigabytes for so many names.
MOST_IDS = 2**23  # of a kind
LARGEST_IDS = 2**30  # bytes of a kind in numpy, which takes four for each character of the longest
_SHOWN = 3  # ids in an error message


@dataclass(frozen=True, eq=False)
class ScoreFile:
    """The content of a score file; whatever breaks the format raises ValueError as soon as it is built.

    Attributes:
        scores: (Q, G), or (Q, K) descending in each row.
        indices: (Q, K) positions in `gallery_ids`, none twice in a row; `None` if `scores` is dense.
        query_ids, gallery_ids: Q and G distinct strings.
        moved: (Q,) bool, the rows whose first candidate a re-ranker put there; `None`: no row.
        names_listed_only: whether the gallery may have more images than `gallery_ids`, as a run names only
            those that it lists.
    """

    scores: np.ndarray
    indices: np.ndarray | None
    query_ids: tuple[str, ...]
    gallery_ids: tuple[str, ...]
    moved: np.ndarray | None = None
    names_listed_only: bool = False

    def __post_init__(self) -> None:
        _check_ids("query", self.query_ids)
        _check_ids("gallery", self.gallery_ids)
        scores, queries, gallery = self.scores, len(self.query_ids), len(self.gallery_ids)
        if scores.dtype.kind not in "fiu":
            raise ValueError(f"scores must be real numbers, got {scores.dtype}")
        _check_rows(scores.shape, queries)
        _check_columns(scores.shape, None if self.indices is None else self.indices.shape, gallery)
        broken = np.isnan(scores) | (scores == np.inf)
        self._refuse(broken, "has the score {score}: scores must be finite, or -inf where nothing was scored")
        if self.moved is not None and (self.moved.shape != (queries,) or self.moved.dtype != bool):
            raise ValueError(f"moved must be ({queries},) bool, got {self.moved.shape} {self.moved.dtype}")
        if self.indices is not None:
            self._check_lists(self.indices)
        elif self.moved is not None:
            raise ValueError("moved belongs to lists, and there are no indices")

    def _check_lists(self, indices: np.ndarray) -> None:
        scores = self.scores
        if indices.dtype.kind not in "iu":
            raise ValueError(f"indices must be integers, got {indices.dtype}")
        self._refuse(
            indices < 0,
            "has fewer candidates than the others (index {index}): give every query as many, by searching"
            " deeper, by cutting all lists to the shortest, or with other images at the score -inf",
        )
        self._refuse(
            indices >= len(self.gallery_ids),
            f"has index {{index}}, but the gallery has {len(self.gallery_ids)} images, counted from 0",
        )
        rises = np.zeros(scores.shape, dtype=bool)
        rises[:, 1:] = scores[:, 1:] > scores[:, :-1]
        if self.moved is not None and scores.shape[1] > 1:
            rises[self.moved, 1] = False
        self._refuse(
            rises,
            "is not sorted, its score {score} is above the one before it: sort each row by descending score,"
            " or leave out indices and give scores for the whole gallery",
        )
        repeats = np.zeros(scores.shape, dtype=bool)
        for listed, repeated in zip(indices, repeats, strict=True):  # at once it would take gigabytes
            order = np.argsort(listed, kind="stable")
            repeated[order[1:]] = listed[order[1:]] == listed[order[:-1]]
        self._refuse(repeats, "lists {image!r} twice (candidate {place}): keep the better one")

    def _refuse(self, broken: np.ndarray, rule: str) -> None:
        if not broken.any():
            return
        row = int(broken.any(axis=1).argmax())
        column = int(broken[row].argmax())
        index = column if self.indices is None else int(self.indices[row, column])
        known = 0 <= index < len(self.gallery_ids)
        shown = rule.format(
            score=self.scores[row, column],
            index=index,
            image=self.gallery_ids[index] if known else None,
            place=column + 1,
        )
        raise ValueError(f"query {self.query_ids[row]!r} {shown}")

    @property
    def reranked(self) -> bool:
        """Whether a re-ranker has put first answers in their place, so scores no longer say the order."""
        return self.moved is not None and bool(self.moved.any())

    def describe(self) -> str:
        kind = "dense" if self.indices is None else f"top {self.scores.shape[1]:,}"
        return f"{len(self.query_ids):,} queries, {len(self.gallery_ids):,} images, {kind}"


def read_score_file(path: str | Path) -> ScoreFile:
    """Reads and checks a score file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, or breaks the format; names the file and the query.
    """
    path = Path(path)
    check_suffix(path)
    is_run = path.suffix in RUNS
    if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
        raise ValueError(f"{path} is no file")
    try:
        if is_run:
            arrays, query_ids, gallery_ids = read_run(path, LARGEST_CONTENT // 2)
        else:
            read = _read_npz if path.suffix == ".npz" else _read_safetensors
            arrays, query_ids, gallery_ids = read(path)
        return ScoreFile(
            scores=arrays["scores"],
            indices=arrays.get("indices"),
            query_ids=query_ids,
            gallery_ids=gallery_ids,
            moved=arrays.get("moved"),
            names_listed_only=is_run,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def named_score_files(paths: Sequence[Path]) -> dict[str, ScoreFile]:
    """Score files by their names, or where two have one name by their paths.

    Raises:
        ValueError, OSError: one is given twice, or cannot be read; see [`read_score_file`].
    """
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = list(map(str, paths))
    if len(set(names)) < len(names):
        raise ValueError(f"{Counter(names).most_common(1)[0][0]} is given twice")
    return {name: read_score_file(path) for name, path in zip(names, paths, strict=True)}


def write_score_file(path: str | Path, content: ScoreFile) -> None:
    """Writes a score file; it is whole or not there.

    Raises:
        ValueError: a path or, for a run, a name or a score that the format does not have.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix in RUNS:
        _write_run(path, content)
        return
    given = {"scores": content.scores, "indices": content.indices, "moved": content.moved}
    arrays: dict[str, Any] = {
        name: np.ascontiguousarray(array) for name, array in given.items() if array is not None
    }
    if content.indices is not None and len(content.gallery_ids) < 2**31:
        arrays["indices"] = arrays["indices"].astype(np.int32)  # half the file
    ids = {"query_ids": content.query_ids, "gallery_ids": content.gallery_ids}
    with replacing(path) as unfinished:
        if path.suffix == ".npz":
            columns: dict[str, Any] = {name: np.array(names) for name, names in ids.items()}
            np.savez(unfinished, **columns | arrays)
        else:
            save_file(arrays, unfinished, {name: json.dumps(names) for name, names in ids.items()})


def _write_run(path: Path, content: ScoreFile) -> None:
    """Lists of what was scored, in their order, which a run says by its scores alone."""
    if content.indices is None:
        content = align_gallery(content, "", in_tie_order(content.gallery_ids), "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what was not scored, which a run does not name at all
        images, values, scored = scored_candidates(content.indices, content.scores)
    if images is None:
        images = best_columns(values, values.shape[1])
        values = np.take_along_axis(values, images, axis=1)
    lines = run_lines(images, values, scored, content.query_ids, content.gallery_ids)
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="\n") as stream:
        try:
            stream.writelines(lines)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def align(files: Sequence[ScoreFile], names: Sequence[str]) -> list[ScoreFile]:
    """The files with rows and columns in the order of the first one, by id.

    The images are those of the first file that names its whole gallery; where none does, all that are listed.

    Raises:
        ValueError: they are not about the same queries and images; with the first ids that differ.
    """
    whole = [
        (file.gallery_ids, name)
        for file, name in zip(files, names, strict=True)
        if not file.names_listed_only
    ]
    listed = tuple(dict.fromkeys(chain.from_iterable(file.gallery_ids for file in files)))
    gallery_ids, owner = whole[0] if whole else (listed, names[0])
    return [
        align_gallery(align_queries(file, name, files[0].query_ids, names[0]), name, gallery_ids, owner)
        for file, name in zip(files, names, strict=True)
    ]


def align_queries(file: ScoreFile, name: str, query_ids: tuple[str, ...], other: str) -> ScoreFile:
    """The file with its queries in the order of `query_ids`; raises as [`align`], with the names given."""
    if file.query_ids == query_ids:
        return file
    rows = _positions("query", file.query_ids, name, query_ids, other)
    return replace(
        file,
        scores=file.scores[rows],
        indices=None if file.indices is None else file.indices[rows],
        query_ids=query_ids,
        moved=None if file.moved is None else file.moved[rows],
    )


def align_gallery(file: ScoreFile, name: str, gallery_ids: tuple[str, ...], other: str) -> ScoreFile:
    """The file with its images in the order of `gallery_ids`; raises as [`align`], with the names given.

    One that names what it lists alone may lack others.
    """
    if file.gallery_ids == gallery_ids:
        return replace(file, names_listed_only=False) if file.names_listed_only else file
    if file.indices is None:
        columns = _positions(
            "gallery", file.gallery_ids, name, gallery_ids, other
        )  # (G,) where each now lies
        return replace(file, scores=file.scores[:, columns], gallery_ids=gallery_ids)
    known = set(file.gallery_ids)
    wanted = [key for key in gallery_ids if key in known] if file.names_listed_only else gallery_ids
    _positions("gallery", file.gallery_ids, name, tuple(wanted), other)
    place = {key: position for position, key in enumerate(gallery_ids)}
    new_position = np.array([place[key] for key in file.gallery_ids])  # of a type that holds the last one
    return replace(file, indices=new_position[file.indices], gallery_ids=gallery_ids, names_listed_only=False)


def check_suffix(path: Path) -> None:
    """Raises ValueError for a path that no score file has; a command asks before it begins to compute."""
    if path.suffix not in SUFFIXES:
        known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise ValueError(f"{path}: a score file ends in {known}, not in {path.suffix!r}")


def _check_rows(shape: tuple[int, ...], queries: int) -> None:
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"scores must be (queries, images), got shape {shape}")
    if shape[0] != queries:
        raise ValueError(f"there are {queries} query ids for {shape[0]} rows of scores")


def _check_columns(scores: tuple[int, ...], indices: tuple[int, ...] | None, gallery: int) -> None:
    if indices is None and scores[1] != gallery:
        raise ValueError(
            f"there are {gallery} gallery ids for {scores[1]} columns of scores; top-K lists need indices"
        )
    if indices is not None and indices != scores:
        raise ValueError(f"indices and scores must have one shape, got {indices} and {scores}")


def _check_headers(
    shapes: dict[str, tuple[int, ...]], sizes: dict[str, int], queries: int, gallery: int
) -> None:
    """Looks at arrays before they are read, as a file of a megabyte may unpack to gigabytes.

    Args:
        sizes: in bytes.
    """
    _check_rows(shapes["scores"], queries)
    if (total := sum(sizes.values())) > LARGEST_CONTENT:
        raise ValueError(
            f"it unpacks to {total:,} bytes, and at most {LARGEST_CONTENT:,} are read: write float32, or of "
            "each query the best candidates alone, with their indices"
        )
    if (
        len(shapes.get("indices", (1, 1))) == 2
    ):  # those of rows of different lengths are named when they are read
        _check_columns(shapes["scores"], shapes.get("indices"), gallery)


def _check_ids(kind: str, ids: tuple[str, ...]) -> None:
    if len(set(ids)) != len(ids):
        repeated, times = Counter(ids).most_common(1)[0]
        raise ValueError(f"the {kind} id {repeated!r} is there {times} times: ids must be distinct")
    for name in ids:
        # numpy drops zero characters at the end of a string.
        if not name or "\0" in name:
            raise ValueError(f"{kind} ids must not be empty or hold a zero character, got {name!r}")


def _positions(kind: str, ids: tuple[str, ...], name: str, wanted: tuple[str, ...], other: str) -> np.ndarray:
    """Where in `ids` each of `wanted` is."""
    place = {key: position for position, key in enumerate(ids)}
    lacking = [key for key in wanted if key not in place]
    stripped = {key.lstrip("0"): key for key in ids}
    known = set(wanted)
    extra = [key for key in ids if key not in known]
    if lacking or extra:
        parts = []
        for keys, one, without in ((lacking, other, name), (extra, name, other)):
            if keys:
                shown = ", ".join(map(repr, keys[:_SHOWN])) + (", ..." if len(keys) > _SHOWN else "")
                parts.append(f"{len(keys)} of {one} are not in {without} ({shown})")
        if like := next((key for key in lacking if key.lstrip("0") in stripped), None):
            other_id = stripped[like.lstrip("0")]
            parts.append(f"ids are text, zeros in front count: {other_id!r} is not {like!r}")
        raise ValueError(
            f"{name} and {other} are not about the same {'queries' if kind == 'query' else 'images'}:"
            f" of {len(ids)} and {len(wanted)} {kind} ids, {'; '.join(parts)}"
        )
    return np.array([place[key] for key in wanted])


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    arrays: dict[str, np.ndarray] = {}
    name = ""
    try:
        # Opened here, because numpy leaves a file that is no archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            _check_names(content.files)
            _check_npz_headers(content)
            for name in (*_ARRAYS, *_IDS):
                if name in content.files:
                    arrays[name] = content[name]
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError) as error:
        way_out = ""
        if "Object arrays" in str(error):
            way_out = "; rows of different lengths are stored so: give every query as many candidates"
            if name in _IDS:
                way_out = f"; {name} holds Python objects: write strings, such as {name}.astype(str)"
        raise ValueError(f"no readable score file ({error}{way_out})") from error
    return arrays, _ids_of_array(arrays, "query_ids"), _ids_of_array(arrays, "gallery_ids")


def _check_npz_headers(content: Any) -> None:
    """See [`_check_headers`]; content is numpy's, of a file that is open."""
    shapes, sizes = {}, {}
    for name in (*_ARRAYS, *_IDS):
        if name not in content.files:
            continue
        member = name if name in content.zip.namelist() else f"{name}.npy"
        with content.zip.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            if version not in _HEADERS:
                raise ValueError(f"{name} is of format {version} of numpy, which is for other arrays")
            shape, _, dtype = _HEADERS[version](stream)
            sizes[name], shapes[name] = dtype.itemsize * math.prod(shape), shape
            if name in _IDS:
                _check_ids_header(name, shape, dtype, sizes[name])
            in_file = content.zip.getinfo(member).file_size - stream.tell()
        if not dtype.hasobject and sizes[name] != in_file:
            raise ValueError(f"{name} is to have {sizes[name]:,} bytes, and {in_file:,} are there: damaged")
    _check_headers(shapes, sizes, math.prod(shapes["query_ids"]), math.prod(shapes["gallery_ids"]))


def _check_ids_header(name: str, shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    """As [`_check_headers`], of an array of names."""
    if math.prod(shape) > MOST_IDS or size > LARGEST_IDS or dtype.itemsize > 4 * LONGEST_PATH:
        raise ValueError(
            f"{name} are {math.prod(shape):,} of up to {dtype.itemsize // 4:,} characters, {size:,} bytes: "
            f"at most {MOST_IDS:,} of {LONGEST_PATH:,}, and {LARGEST_IDS:,} bytes, are read"
        )


def _ids_of_array(arrays: dict[str, np.ndarray], name: str) -> tuple[str, ...]:
    ids = arrays.pop(name)
    if ids.ndim != 1 or ids.dtype.kind != "U":
        raise ValueError(
            f"{name} must be a list of strings, got {ids.dtype} of shape {ids.shape}; of plain numbers"
            f" {name}.astype(str) makes strings, which have no zeros in front"
        )
    return tuple(ids.tolist())


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...], tuple[str, ...]]:
    try:
        with safe_open(path, framework="np") as content:
            metadata = content.metadata() or {}
            tensors = list(content.keys())  # noqa: SIM118 (no mapping, only its method)
            _check_names([*tensors, *(name for name in _IDS if name in metadata)])
            headers = {name: content.get_slice(name) for name in _ARRAYS if name in tensors}
            shapes = {name: tuple(header.get_shape()) for name, header in headers.items()}
            ids = {name: _ids_of_json(metadata, name) for name in _IDS}
            size = {"the file": path.stat().st_size}
            _check_headers(shapes, size, len(ids["query_ids"]), len(ids["gallery_ids"]))
            arrays = {name: content.get_tensor(name) for name in headers}
    except (SafetensorError, TypeError, AttributeError) as error:  # the last two: a type unknown to numpy
        raise ValueError(
            f"no readable score file ({error}); numpy has no bfloat16 or float8: use float32"
        ) from error
    return arrays, ids["query_ids"], ids["gallery_ids"]


def _ids_of_json(metadata: dict[str, str], name: str) -> tuple[str, ...]:
    if name not in metadata:
        raise ValueError(f"{name} is a tensor: it must be a JSON list of strings in the file's metadata")
    try:
        ids: Any = json.loads(metadata[name])
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be a JSON list of strings: {error}") from error
    if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
        raise ValueError(f"{name} must be a JSON list of strings")
    return tuple(ids)


def _check_names(found: Sequence[str]) -> None:
    lacking = [name for name in ("scores", *_IDS) if name not in found]
    if lacking:
        raise ValueError(
            f"it has no {' and no '.join(lacking)}, only {', '.join(sorted(found)) or 'nothing'}"
        )
