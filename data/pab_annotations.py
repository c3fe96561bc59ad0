"""PAB's annotation files: finding them, and reading them once into an Arrow file.

The releases (github.com/Shuyu-XJTU/CMP, its workshop edition, the challenge's) differ in the files' prefix,
in the fields of a row and in the images' format; `ANNOTATION_FILES` and `_pairs` are where that ends.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import datasets.config
from datasets import Dataset, Features, NamedSplit, Split, Value
from datasets.exceptions import DatasetGenerationError

from .annotation_fields import WeatherSplit, has_a_word, optional_text, relative_path, required_text
from .json_records import json_records

logger = logging.getLogger(__name__)

# Relative to the root; the first that exists wins: of the same images, attr_ says all that the others say.
ANNOTATION_FILES = {
    "train": (
        "annotation/train/attr_*.json",
        "annotation/train_attr/attr_*.json",
        "annotation/train/pair_*.json",
        "annotation/train/imgs_*.json",
    ),
    "test": ("annotation/test/attr.json", "annotation/test/pair.json"),
    "ucc": ("annotation/test/ucc.json",),
    **{split: (f"annotation/multi-weather/{split}.json",) for split in get_args(WeatherSplit)},
}
_BEHAVIOUR_OF_FOLDER = {"goal": "normal", "wentrong": "anomaly", "wentwrong": "anomaly"}

PAIR_FEATURES = Features(
    {
        "image": Value("string"),
        "caption": Value("string"),
        "image_id": Value("string"),
        "behaviour": Value("string"),
        "action": Value("string"),
        "scene": Value("string"),
        "source_id": Value("string"),
        "source_caption": Value("string"),
        "hard_i": Value("string"),
        "hard_c": Value("string"),
        "hard_i_id": Value("string"),
        "file": Value("string"),
        "line": Value("int32"),
    }
)

# Part of the cache's key: raise it whenever the same files would give other rows.
_READER_VERSION = 2


def _find_annotations(
    root: Path, split: str, annotations: str | Path | Sequence[str | Path] | None
) -> list[tuple[str, Path]]:
    """(name in messages and in the column `file`, path) of each file, by number: attr_2 before attr_10."""
    if not root.is_dir():
        raise FileNotFoundError(f"the root {root} is not a folder: give the one that holds PAB's annotation/")
    patterns = ANNOTATION_FILES[split]
    if annotations is None:
        found = _first_match(root, patterns)
        if not found:
            raise FileNotFoundError(
                f"no annotation file of {split!r} under {root}: looked for {', '.join(patterns)}; "
                "give the folder that holds annotation/ as root, or the files themselves as annotations"
            )
    else:
        given = [annotations] if isinstance(annotations, str | Path) else annotations
        names = tuple(dict.fromkeys(pattern.rpartition("/")[2] for pattern in patterns))
        found = []
        for path in map(Path, given):
            inside = _first_match(path, names) if path.is_dir() else [path] if path.is_file() else []
            if not inside:
                raise FileNotFoundError(
                    f"no annotation file of {split!r} at {path}: "
                    f"annotations takes files, or folders with {', '.join(names)}"
                )
            found += inside
    found = sorted(set(found), key=lambda path: (_number(path), path.name, path))
    numbers = {_number(path) for path in found}
    missing = sorted(set(range(max(numbers) + 1)) - numbers)
    if annotations is None and missing:
        logger.warning("%s lacks the files numbered %s: subsets differ from the whole set's", root, missing)
    names = [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in found]
    return list(zip(names, found, strict=True))


def _first_match(folder: Path, patterns: Iterable[str]) -> list[Path]:
    for pattern in patterns:
        files = (path for path in folder.glob(pattern) if path.is_file())
        found = [path for path in files if "*" not in pattern or _number(path) >= 0]
        if found:
            return found
    return []


def _number(path: Path) -> int:
    """10 of attr_10.json, -1 of a name without a number."""
    match = re.fullmatch(r"[a-z]+_(\d+)", path.stem)
    return int(match[1]) if match else -1


def open_annotations(
    root: Path,
    split: str,
    annotations: str | Path | Sequence[str | Path] | None,
    cache_dir: str | Path | None,
) -> Dataset:
    """All pairs of a split but "validation", memory-mapped; see `load_pab` for the arguments."""
    files = _find_annotations(root, split, annotations)
    states = []
    for name, path in files:
        status = path.stat()
        states.append((name, str(path.resolve()), status.st_size, status.st_mtime_ns))
    return cached_rows(
        _all_pairs,
        {"files": tuple(files)},
        PAIR_FEATURES,
        [_READER_VERSION, states],
        cache_dir,
        split=NamedSplit(split.replace("-", "_")),  # which allows no hyphen
    )


def cached_rows(
    rows: Callable[..., Iterator[dict[str, Any]]],
    arguments: dict[str, Any],
    features: Features,
    state: Any,
    cache_dir: str | Path | None,
    split: NamedSplit = Split.TRAIN,
) -> Dataset:
    """What `rows` yields, from the cache unless `state`, in JSON, has changed.

    There `datasets` writes it under a lock, beside, and renames. Raises what `rows` raises.
    """
    fingerprint = hashlib.blake2b(json.dumps(state).encode(), digest_size=16)
    try:
        return Dataset.from_generator(
            rows,
            features=features,
            gen_kwargs=arguments,
            cache_dir=str(cache_dir or datasets.config.HF_DATASETS_CACHE),
            fingerprint=fingerprint.hexdigest(),
            split=split,
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None


def _all_pairs(files: Iterable[tuple[str, Path]]) -> Iterator[dict[str, Any]]:
    empty = True
    for name, path in files:
        for line, record in json_records(name, path):
            for pair in _pairs(record, name, line):
                empty = False
                yield pair
    if empty:
        raise ValueError(f"no pair in {', '.join(name for name, _ in files)}: the files are empty")


def _pairs(record: Any, file: str, line: int) -> Iterator[dict[str, Any]]:
    """The rows of one record, one per caption."""
    where = f"{file}, line {line}"
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object with 'image' and 'caption', got {record!r:.80}")
    image = relative_path(required_text(record, "image", where), where)
    normal, anomaly = optional_text(record, "normal", where), optional_text(record, "anomaly", where)
    if normal is not None and anomaly is not None:
        raise ValueError(f"{where}: both 'normal' ({normal!r}) and 'anomaly' ({anomaly!r}) given; keep one")
    if normal is not None:
        behaviour = "normal"
    elif anomaly is not None:
        behaviour = "anomaly"
    else:
        behaviour = _BEHAVIOUR_OF_FOLDER.get(PurePosixPath(image).parent.name)
    hard_image = optional_text(record, "hard_i", where)
    if hard_image is not None:
        hard_image = relative_path(hard_image, where)
        if image.startswith("train/") and not hard_image.startswith("train/"):
            hard_image = f"train/{hard_image}"

    hard_caption = optional_text(record, "hard_c", where)
    captions = record.get("caption")
    if not isinstance(captions, list):
        captions = [captions]
    elif not captions:
        raise ValueError(f"{where}: 'caption' is an empty list")
    for caption in captions:
        caption = required_text({"caption": caption}, "caption", where)
        if not has_a_word(caption):
            raise ValueError(f"{where}: 'caption' holds no word, got {caption!r:.80}")
        yield {
            "image": image,
            "caption": caption,
            "image_id": required_text(record, "image_id", where),
            "behaviour": behaviour,
            "action": anomaly if normal is None else normal,
            "scene": optional_text(record, "scene", where),
            "source_id": optional_text(record, "source_id", where),
            "source_caption": optional_text(record, "source_caption", where),
            "hard_i": hard_image,
            "hard_c": hard_caption if hard_caption is not None and has_a_word(hard_caption) else None,
            "hard_i_id": optional_text(record, "hard_i_id", where),
            "file": file,
            "line": line,
        }
