"""Images with their texts, wherever from: PAB, tables, published benchmarks, data sets of the Hub."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
from datasets import Dataset

from .drawn import is_drawn
from .hub_data import fetch_hub_data, is_dataset_folder, open_dataset_rows
from .pab import dataset_name, select_pairs
from .pab_annotations import cached_rows, open_annotations
from .pab_images import image_path
from .pair_tables import TABLE_SUFFIXES, PairReader, TableFile, first_image, table_rows

logger = logging.getLogger(__name__)

# Annotation files of benchmarks in which a person's texts are right for all images of that person.
PUBLISHED = {
    "reid_raw.json": "CUHK-PEDES",
    "ICFG-PEDES.json": "ICFG-PEDES",
    "ICFG_PEDES.json": "ICFG-PEDES",
    "data_captions.json": "RSTPReid",
}
METADATA = ("metadata.csv", "metadata.jsonl")  # of an imagefolder of `datasets`
IMAGE_FOLDERS = ("imgs", "images")  # beside a table, where its images do not lie beside it themselves
_READER_VERSION = 1


@dataclass(frozen=True)
class RetrievalData:
    """Pairs of images and texts by split, in the columns of [`load_pab`], whatever they come from.

    Attributes:
        name: what the data are called in results.
        image_root: where the paths of the column `image` begin.
    """

    name: str
    image_root: Path
    _read: Callable[[str], Dataset]  # all rows that are written as a split
    _has_validation: bool = False
    _is_pab: bool = False

    @classmethod
    def open(
        cls,
        source: str | Path,
        image_root: str | Path | None = None,
        *,
        cache_dir: str | Path | None = None,
    ) -> "RetrievalData":
        """Data of any of these kinds:

        - a folder of PAB or in its layout, with annotation/ in it;
        - a table, .csv, .tsv, .jsonl, .json or .parquet, a row for each image and text, or list of texts:
          `image` and `text`, or other names of `COLUMNS`, and if there are any `id` (who is shown: texts are
          right for all images of an id; without it each image is its own), `split` and PAB's `LABELS`;
        - a folder of CUHK-PEDES, ICFG-PEDES or RSTPReid, or their annotation file, as published;
        - an imagefolder: images with metadata.csv or metadata.jsonl;
        - a folder of Parquet files, or what `datasets.Dataset.save_to_disk` wrote;
        - `hf:OWNER/NAME`, a data set of the Hub that is one of these, or `hf:OWNER/NAME/TABLE`.

        Without a split, all rows are each of "train", "validation" (as much as is held out of "train") and
        "test".

        Args:
            image_root: the folder that images lie in; `None`: that of the table, or imgs/ or images/ in it.
            cache_dir: see `load_pab`.

        Raises:
            FileNotFoundError: there is no such place, or no data in it.
            ValueError: a row is wrong; names file, line and column.
        """
        name = None
        if str(source).startswith("hf:"):
            name, place = fetch_hub_data(str(source))
        else:
            place = Path(source)
        root = None if image_root is None else Path(image_root)
        if root is not None and not root.is_dir():
            raise FileNotFoundError(f"the image root {root} is not a folder")
        if not place.exists():
            raise FileNotFoundError(
                f"{place}: no such file or folder; a data set of the Hub is hf:OWNER/NAME"
            )
        if (place / "annotation").is_dir():
            read = partial(open_annotations, place, annotations=None, cache_dir=cache_dir)
            return cls(name or dataset_name(place), root or place, read, _is_pab=True)
        tables = _tables(place)
        if tables:
            if root is None:
                root = _image_root(place, tables[0])
            rows = _open_tables(tables, root, cache_dir)
            name = name or PUBLISHED.get(Path(tables[0].path).name)
        elif place.suffix.lower() == ".parquet" or is_dataset_folder(place):
            rows, lies_in = open_dataset_rows(place, name or place.name, cache_dir)
            root = root or lies_in
        else:
            raise FileNotFoundError(_nothing_found(place))
        return cls._of_rows(rows, name or _table_name(place), root)

    @classmethod
    def _of_rows(cls, rows: Dataset, name: str, root: Path) -> "RetrievalData":
        column = cast(pa.Table, rows.select_columns("split").with_format("arrow")[:]).column("split")
        splits = column.to_numpy()  # objects, None where nothing names a split
        without = np.flatnonzero(splits == None)  # noqa: E711  of each element
        if 0 < len(without) < len(rows):
            row = rows[int(without[0])]
            raise ValueError(
                f"{row['file']}, line {row['line']}: nothing says of which split it is; of others their "
                "folder does, train, val or test: move the image into one, or add a column 'split'"
            )
        rows = rows.remove_columns("split")

        def read(split: str) -> Dataset:
            if len(without):
                if split == "test":
                    logger.info(
                        "%s names no splits: all its %d pairs are evaluated, be they trained on or not "
                        "(--split validation: those that training holds out)",
                        name,
                        len(rows),
                    )
                chosen = np.arange(len(rows) if split in ("train", "test") else 0)
            else:
                chosen = np.flatnonzero(splits == split)
            if not len(chosen):
                counts = {} if len(without) else Counter(splits)
                there = ", ".join(f"{count} of {other!r}" for other, count in counts.items())
                raise ValueError(
                    f"{name} has no pair of the split {split!r}: {there or 'it names no splits'}"
                )
            return rows if len(chosen) == len(rows) else rows.select(chosen)

        named = f"{name} (drawn)" if is_drawn(root) else name
        return cls(named, root, read, _has_validation="validation" in splits)

    def pairs(
        self,
        split: str,
        pairs: int | None = None,
        seed: int = 42,
        *,
        subset: str = "random",
        validation_fraction: float = 0.02,
        max_validation_pairs: int | None = None,
    ) -> Dataset:
        """One split, a row for each text; see `load_pab`, whose columns these are.

        Where the data have a validation split of their own, nothing is cut from "train", and
        `validation_fraction` has no meaning; it is whole unless `max_validation_pairs` says otherwise.

        Raises:
            ValueError: there is no pair of this split, or an argument is out of range.
        """
        return select_pairs(
            self._read,
            split,
            pairs,
            seed,
            subset=subset,
            validation_fraction=validation_fraction,
            max_validation_pairs=max_validation_pairs,
            has_validation=self._has_validation,
            tells_sources=self._is_pab,
        )

    def training_rows(self) -> Dataset:
        """All rows of "train", those held out for validation among them."""
        return self._read("train")

    def check_images(self, dataset: Dataset) -> None:
        """Raises FileNotFoundError, naming the line, where an image of these rows is not there."""
        looked_for = set()
        missing = []
        for image, file, line in zip(dataset["image"], dataset["file"], dataset["line"], strict=True):
            if image not in looked_for:
                looked_for.add(image)
                with suppress(ValueError):  # no file that may be read: whoever opens it will tell
                    if not (path := image_path(self.image_root, image)).exists():
                        missing.append(f"{file}, line {line}: {path}: no such image file")
        if missing:
            more = "" if len(missing) == 1 else f", nor are {len(missing) - 1} other images there"
            raise FileNotFoundError(
                f"{missing[0]}{more}; images are looked for below {self.image_root}: --image_root names "
                "another folder"
            )


def _tables(place: Path) -> list[TableFile]:
    """The tables that a place is or holds, or none."""
    if place.is_file():
        if place.suffix.lower() in TABLE_SUFFIXES:
            return [TableFile(str(place), split_of_folders=place.name in METADATA)]
        if place.suffix.lower() != ".parquet":
            kinds = ", ".join((*TABLE_SUFFIXES, ".parquet"))
            raise ValueError(f"{place}: a table's name ends in one of {kinds}: save it as one of these")
        return []
    for file in PUBLISHED:
        if (place / file).is_file():
            return [TableFile(str(place / file))]
    for above in ("", "*/", "*/*/"):
        for metadata in METADATA:
            found = sorted(path for path in place.glob(f"{above}{metadata}") if path.is_file())
            if found:
                folders = {path: path.parent.relative_to(place).as_posix() for path in found}
                return [TableFile(str(path), folder, True) for path, folder in folders.items()]
    return []


def _image_root(place: Path, table: TableFile) -> Path:
    folder = place.parent if place.is_file() else place
    image = first_image(Path(table.path))
    if image is None or os.path.lexists(folder / table.folder / image):
        return folder
    there = (folder / name for name in IMAGE_FOLDERS if os.path.lexists(folder / name / image))
    return next(there, folder)


def _open_tables(tables: Sequence[TableFile], root: Path, cache_dir: str | Path | None) -> Dataset:
    states = []
    for table in tables:
        status = os.stat(table.path)
        place = os.path.realpath(table.path)
        states.append([asdict(table), place, status.st_size, status.st_mtime_ns])
    arguments = {"tables": tuple(tables), "image_root": root}
    state = [_READER_VERSION, "tables", str(root.absolute()), states]
    return cached_rows(table_rows, arguments, PairReader.features(), state, cache_dir)


def _table_name(place: Path) -> str:
    """A table's own name, or its folder's where all of them are called the same."""
    place = Path(os.path.abspath(place))
    place = place.parent if place.name in METADATA else place
    return place.stem if place.is_file() else place.name


def _nothing_found(place: Path) -> str:
    given = sorted(path for path in place.glob("*") if path.suffix.lower() in (*TABLE_SUFFIXES, ".parquet"))
    itself = f"; a table is given itself, such as {given[0]}" if given else "; a table is given itself"
    return (
        f"no images with texts found in {place}: looked for annotation/ (PAB), {', '.join(PUBLISHED)}, "
        f"{' and '.join(METADATA)}, and Parquet files{itself}"
    )
