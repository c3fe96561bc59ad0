"""Tables of images and their texts, CSV or JSON, as people keep them and as benchmarks are published.

A row names an image and a text, or a list of them; `COLUMNS` says what its columns may be called.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from datasets import Features, Value

from .annotation_fields import EvaluatedSplit, has_a_word, optional_text, relative_path, required_text
from .json_records import json_records
from .pab_annotations import PAIR_FEATURES
from .text_files import read_text

# Of several that a table has, the first counts. Upper case is lower case.
COLUMNS = {
    "image": ("image", "file_name", "file_path", "img_path", "image_path", "filename"),
    "text": ("text", "texts", "caption", "captions"),
    "id": ("person_id", "image_id", "id"),
    "split": ("split",),
}
# What PAB's annotations say of a row, where a table says it too.
LABELS = ("source_id", "behaviour", "action", "scene")
SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "validation" for name in ("val", "valid", "validation", "dev")},
    **{name: "test" for name in ("test", "testing")},
    **{name: name for name in get_args(EvaluatedSplit)},
}
SEPARATORS = {".csv": ",;\t|", ".tsv": "\t"}
TABLE_SUFFIXES = (*SEPARATORS, ".jsonl", ".ndjson", ".json")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """What a table's columns are called, in lower case."""

    image: str
    text: str
    id: str | None
    split: str | None

    @classmethod
    def among(cls, names: Iterable[str], where: str) -> "Columns":
        """Raises ValueError, beginning with `where`, where images or texts have none."""
        names = list(names)
        there = {name.lower() for name in names}
        found = {use: next(filter(there.__contains__, called), None) for use, called in COLUMNS.items()}
        for use in ("image", "text"):
            if found[use] is None:
                raise ValueError(
                    f"{where}: no column of {use}s: one must be called {' or '.join(COLUMNS[use])}, "
                    f"but they are {', '.join(map(repr, names))}"
                )
        return cls(**found)  # pyright: ignore[reportArgumentType]


@dataclass
class PairReader:
    """Makes rows of records: those of [`load_pab`], and `split`, None where nothing names one.

    Rows of one id show the same person or thing: their texts are right for all their images. Without an id
    an image is itself alone, however many texts it has.

    Args:
        image_root: absolute paths below it are taken as well.
        folder: relative to the root, where the records' paths begin.
        split_of_folders: take the split from the image's folders where no column names it.
    """

    columns: Columns
    image_root: Path | None = None
    folder: str = ""
    split_of_folders: bool = False
    seen: dict[str, tuple[str, str]] = field(default_factory=dict)  # image to id and place

    @staticmethod
    def features() -> Features:
        """Of the rows, as `datasets` keeps them."""
        return Features({**PAIR_FEATURES, "split": Value("string")})

    def rows(self, record: Record, file: str, line: int) -> Iterator[dict[str, Any]]:
        """One for each text; raises ValueError naming file, line and column of what is wrong."""
        where, columns, record = f"{file}, line {line}", self.columns, dict(record)
        image = self._relative(required_text(record, columns.image, where), where)
        image_id = (columns.id and optional_text(record, columns.id, where)) or image
        known = self.seen.setdefault(image, (image_id, where))
        if known[0] != image_id:
            raise ValueError(
                f"{where}: {columns.id!r} is {image_id!r}, but {image!r} has {known[0]!r} on {known[1]}. It "
                "says who or what an image shows: rename the column if it numbers the rows"
            )
        labels = {name: optional_text(record, name, where) for name in LABELS}
        if labels["behaviour"] not in (None, "normal", "anomaly"):
            raise ValueError(
                f"{where}: 'behaviour' must be normal or anomaly, or empty, got {labels['behaviour']!r}"
            )
        split = self._split(record, image, where)
        texts = record.get(columns.text)
        for text in texts if isinstance(texts, list) and texts else [texts or None]:
            text = required_text({columns.text: text}, columns.text, where)
            if not has_a_word(text):
                raise ValueError(f"{where}: {columns.text!r} holds no word, got {text!r:.80}")
            yield {
                **dict.fromkeys(("source_caption", "hard_i", "hard_c", "hard_i_id")),
                **labels,
                **{"image": image, "caption": text, "image_id": image_id, "split": split},
                **{"file": file, "line": line},
            }

    def _relative(self, image: str, where: str) -> str:
        if self.image_root is not None and Path(image).is_absolute():
            root = self.image_root.absolute()
            if not Path(image).is_relative_to(root):
                raise ValueError(
                    f"{where}: the image path {image!r} leaves the root {root}: give the folder that it lies "
                    "in as image root (--image_root), or write it relative to that of the table"
                )
            return relative_path(Path(image).relative_to(root).as_posix(), where)
        return relative_path(str(PurePosixPath(self.folder, relative_path(image, where))), where)

    def _split(self, record: Record, image: str, where: str) -> str | None:
        if self.columns.split is None:
            if not self.split_of_folders:
                return None
            folders = PurePosixPath(image).parent.parts
            return next((SPLIT_NAMES[name] for name in folders if name in SPLIT_NAMES), None)
        split = required_text(dict(record), self.columns.split, where).strip().lower()
        if split not in SPLIT_NAMES:
            raise ValueError(f"{where}: {self.columns.split!r} must be train, val or test, got {split!r}")
        return SPLIT_NAMES[split]


@dataclass(frozen=True)
class TableFile:
    """A table; `folder` is where its paths begin, relative to the root of the images."""

    path: str
    folder: str = ""
    split_of_folders: bool = False


def table_rows(tables: Iterable[TableFile], image_root: Path) -> Iterator[dict[str, Any]]:
    """The rows of tables that belong together, see [`PairReader`]; ValueError also if there is none."""
    seen: dict[str, tuple[str, str]] = {}
    empty = True
    for table in tables:
        reader = None
        for line, record in table_records(Path(table.path)):
            if reader is None:
                columns = Columns.among(record, f"{table.path}, line {line}")
                folder, by_folders = table.folder, table.split_of_folders
                reader = PairReader(columns, image_root, folder, by_folders, seen)
            record = {name.lower(): value for name, value in record.items()}
            for row in reader.rows(record, table.path, line):
                empty = False
                yield row
    if empty:
        raise ValueError(f"{', '.join(table.path for table in tables)}: there is no row in it")


def first_image(path: Path) -> str | None:
    """What the first record of a table names as its image; None where it names none."""
    for line, record in table_records(path):
        column = Columns.among(record, f"{path}, line {line}").image
        image = {name.lower(): value for name, value in record.items()}[column]
        return image if isinstance(image, str) else None
    return None


def table_records(path: Path) -> Iterator[tuple[int, Record]]:
    """(line where it begins, what it says by column) of each record of a table; raises ValueError."""
    reader: Callable[[str, Path], Iterator[tuple[int, Any]]]
    reader = _csv_records if path.suffix.lower() in SEPARATORS else json_records
    for line, record in reader(str(path), path):
        if not isinstance(record, dict):
            raise ValueError(
                f"{path}, line {line}: expected a JSON object with an image and a text, got {record!r:.80}"
            )
        yield line, record


def _csv_records(name: str, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    text = read_text(path)
    separator = _separator(text, SEPARATORS[path.suffix.lower()])
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    begins = 1
    try:
        for fields in lines:
            if not names:
                names = [field.strip() for field in fields]
                if not names:
                    continue
                Columns.among(names, f"{name}, line {begins}, which names the columns")
                if len(set(names)) < len(names):
                    raise ValueError(f"{name}, line {begins}: two columns of one name: {', '.join(names)}")
            elif fields:
                if len(fields) != len(names):
                    raise ValueError(
                        f"{name}, line {begins}: {len(fields)} fields for the {len(names)} columns: "
                        f'put a text that holds {separator!r} into quotes: "..."'
                    )
                yield begins, dict(zip(names, fields, strict=True))
            begins = lines.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f'{name}, line {begins}: {error}: a quote inside of a quoted text is written twice, "", and the '
            "text ends with one"
        ) from None


def _separator(text: str, candidates: str) -> str:
    """That by which the first line names columns of images and texts; otherwise what splits it most."""

    def names(separator: str) -> list[str]:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            return [field.strip().lower() for field in next(rows, [])]
        except csv.Error:
            return []

    def fits(separator: str) -> tuple[bool, int]:
        there = names(separator)
        return all(set(COLUMNS[use]) & set(there) for use in ("image", "text")), len(there)

    return max(candidates, key=fits)
