"""What is known about the images of a gallery beside themselves: what happens in them, where, a caption."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.annotation_fields import LONGEST_PATH
from ..data.json_records import json_records

SUFFIXES = (".csv", ".json", ".jsonl")  # of annotation files in a folder
BEHAVIOURS = ("normal", "anomaly")


@dataclass(frozen=True)
class ImageLabel:
    """What an annotation file says of one image; what it does not say is None."""

    behaviour: str | None = None
    action: str | None = None
    scene: str | None = None
    caption: str | None = None
    camera: str | None = None


def read_labels(paths: Path | Sequence[Path]) -> dict[str, ImageLabel]:
    """The labels in a file, in several, or in all of a folder, by the image's path as it is written there.

    A file is one of PAB's annotation files (JSON Lines or one JSON array, of objects with `image`, `normal`
    or `anomaly`, `scene`, `caption`), `datasets`' metadata.jsonl, or a .csv file with a header; the latter
    two name the image in `file_name` and have columns `behaviour` ("normal" or "anomaly"), `action`, `scene`,
    `camera`, `caption`, as far as known. Of several rows about one image the first counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file and the line that is wrong.
    """
    labels: dict[str, ImageLabel] = {}
    given = [paths] if isinstance(paths, Path) else list(paths)
    for path in (file for each in given for file in _annotation_files(each)):
        before = len(labels)
        try:
            for line, row in _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path):
                image, label = _parse_row(row, f"{path}, line {line}")
                labels.setdefault(image, label)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text file in UTF-8: {error}") from error
        except csv.Error as error:
            raise ValueError(f"{path}: not a table of comma-separated values: {error}") from error
        if len(labels) == before == 0:
            raise ValueError(f"{path}: no image is named in it")
    return labels


def labels_of(ids: Iterable[str], labels: Mapping[str, ImageLabel]) -> list[ImageLabel | None]:
    """The label of each gallery id, None where there is none.

    Ids are paths relative to the folder that the gallery was built from, which may lie below the root that
    the annotations speak of: an id also stands for the one path that ends in it.
    """
    by_ending: dict[str, ImageLabel | None] = {}
    for image, label in labels.items():
        parts = image.split("/")
        for start in range(1, len(parts)):
            ending = "/".join(parts[start:])
            by_ending[ending] = None if ending in by_ending else label  # None: more than one ends so
    return [labels[name] if name in labels else by_ending.get(name) for name in ids]


def _annotation_files(path: Path) -> list[Path]:
    """The file itself, or of a folder those that lie in it, in the order of their names."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise FileNotFoundError(f"{path}: no annotation file in it ({', '.join(SUFFIXES)})")
        return files
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    return [path]


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if value}


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, row in json_records(str(path), path):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line}: expected an object, got {row!r:.80}")
        yield line, row


def _parse_row(row: Mapping[str, Any], where: str) -> tuple[str, ImageLabel]:
    image = row.get("image", row.get("file_name"))
    if not isinstance(image, str) or not image:
        raise ValueError(f"{where}: 'image' or 'file_name' must name the image, got {image!r:.80}")
    if len(image) > LONGEST_PATH:
        raise ValueError(f"{where}: the image's path has {len(image):,} characters, {LONGEST_PATH:,} at most")
    behaviour, action = row.get("behaviour"), row.get("action")
    if behaviour is None:  # PAB writes the action under the behaviour's name
        behaviour = next((name for name in BEHAVIOURS if row.get(name)), None)
        action = row[behaviour] if behaviour else action
    if behaviour not in (None, *BEHAVIOURS):
        raise ValueError(f"{where}: 'behaviour' must be normal or anomaly, got {behaviour!r:.80}")
    caption = row.get("caption")
    if isinstance(caption, list):  # as in PAB's test annotations
        caption = caption[0] if caption else None
    camera = str(row["camera"]) if isinstance(row.get("camera"), int) else row.get("camera")
    texts = {"action": action, "scene": row.get("scene"), "caption": caption, "camera": camera}
    for name, text in texts.items():
        if not isinstance(text, str | None):
            raise ValueError(f"{where}: {name!r} must be text, got {text!r:.80}")
    return image, ImageLabel(behaviour, **texts)
