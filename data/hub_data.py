"""Data sets of `datasets`, from a folder, a Parquet file or the Hub, as rows and image files.

Their images lie within Arrow files: each is written out once, as it is, because all that shows or reads an
image takes a file.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, cast
from uuid import uuid4

import datasets.config
import yaml
from datasets import Dataset, DatasetDict, Image, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import DatasetCard
from PIL import Image as PillowImage

from .image_files import file_inside
from .json_records import LARGEST_JSON, read_json
from .pab_annotations import cached_rows
from .pair_tables import SPLIT_NAMES, Columns, PairReader
from .text_files import read_text
from .whole_files import replacing, write_text

DATA_FILES = ("*.parquet", "*.arrow", "*.tar")
SAVED = ("dataset_dict.json", "dataset_info.json")  # by `save_to_disk`
HUB_NAME = re.compile(r"hf:(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<inner>.+))?")
LONGEST_SUFFIX = 16  # bytes of a file's name
_READER_VERSION = 1


def fetch_hub_data(source: str) -> tuple[str, Path]:
    """Name and place of `hf:OWNER/NAME`, of `hf:OWNER/NAME@REVISION` or of a file or folder in it.

    From the Hub's cache where the Hub cannot be reached.

    Raises:
        ValueError: it is no such name.
        OSError: there is no such data set, neither here nor there.
    """
    from huggingface_hub import snapshot_download

    named = HUB_NAME.fullmatch(source)
    if named is None:
        raise ValueError(f"{source}: a data set of the Hub is named hf:OWNER/NAME")
    repo, inner = named["repo"], named["inner"]
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=named["revision"]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"{source}: no such data set on this machine, and none was had from the Hub ({reason}); with a "
            f"network: hf download --repo-type dataset {repo}"
        ) from error
    if inner is None:
        return repo, folder
    if ".." in PurePath(inner).parts:
        raise ValueError(f"{source} leads out of the data set")
    return f"{repo}/{inner}", folder / inner


def is_dataset_folder(place: Path) -> bool:
    saved = any((place / name).is_file() for name in SAVED)
    return saved or any(next(place.rglob(pattern), None) for pattern in DATA_FILES)


def open_dataset_rows(place: Path, name: str, cache_dir: str | Path | None) -> tuple[Dataset, Path]:
    """The rows of all splits, see [`PairReader`], and the folder in which their images lie.

    Args:
        name: what the data are called where a row is named.

    Raises:
        ValueError, FileNotFoundError: they cannot be read as a data set of images and texts.
    """
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE)
    _check_named_files(place)
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    state = [_READER_VERSION, name, states]
    key = hashlib.blake2b(repr(state).encode(), digest_size=16).hexdigest()
    splits = _load(place, cache)
    features = next(iter(splits.values())).features
    columns = Columns.among(_named(features), name)
    feature = _named(features)[columns.image]
    kind = getattr(feature, "dtype", None)
    outside = kind in ("string", "large_string")
    if not outside and not isinstance(feature, Image) and kind not in ("binary", "large_binary"):
        raise ValueError(
            f"{name}: the column {columns.image!r} must hold images or paths, it holds {feature}"
        )
    folder = (place.parent if place.is_file() else place) if outside else cache / "tpas_images" / key
    if not outside:
        # The rows in the cache name images: where these are gone, they are read anew, under another key.
        marker = folder.with_suffix(".key")
        if not folder.is_dir():
            write_text(marker, uuid4().hex)
        state.append(marker.read_text(encoding="utf-8"))
    arguments = {"splits": splits, "columns": columns, "name": name, "place": place}
    arguments["folder"] = None if outside else folder
    return cached_rows(_rows, arguments, PairReader.features(), state, cache_dir), folder


def _load(place: Path, cache: Path) -> dict[str, Dataset]:
    try:
        if place.is_file():
            found = load_dataset("parquet", data_files=str(place), cache_dir=str(cache))
        elif any((place / name).is_file() for name in SAVED):
            found = load_from_disk(str(place))
        else:
            found = load_dataset(str(place), cache_dir=str(cache))
    except Exception as error:  # of any library that `datasets` reads files with
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        raise ValueError(f"{place} is not read by the library datasets: {reason or error}") from error
    if isinstance(found, DatasetDict):
        return {str(split): dataset for split, dataset in found.items()}
    return {"train": cast(Dataset, found)}


def _check_named_files(place: Path) -> None:
    """Looks at what a folder says of where its files lie, which `datasets` would believe: also of addresses.

    Raises:
        ValueError: a file, or a folder, that lies elsewhere; names it.
    """
    card, standalone = place / datasets.config.REPOCARD_FILENAME, place / datasets.config.REPOYAML_FILENAME
    configs: list[Any] = []
    try:
        if card.is_file():
            configs += DatasetCard(read_text(card, LARGEST_JSON)).data.to_dict().get("configs") or ()
        if standalone.is_file():
            configs += (yaml.safe_load(read_text(standalone, LARGEST_JSON)) or {}).get("configs") or ()
    except Exception as error:  # of any of YAML's readers
        raise ValueError(f"{place}: {card.name} or {standalone.name} is not read: {error}") from error
    for config in (config for config in configs if isinstance(config, dict)):
        _check_inside(place, _listed(config.get("data_dir")))
        for entry in _listed(config.get("data_files")):
            _check_inside(place, _listed(entry.get("path") if isinstance(entry, dict) else entry))
    splits = _listed(_said_in(place / SAVED[0], "splits"))
    _check_inside(place, splits)
    for folder in (place, *(place / split for split in splits)):
        for file in _listed(_said_in(folder / "state.json", "_data_files")):
            _check_inside(folder, [file.get("filename") if isinstance(file, dict) else file])


def _check_inside(folder: Path, paths: list[Any]) -> None:
    for path in paths:
        elsewhere = not isinstance(path, str) or path.startswith(("/", "~")) or ":" in path
        if elsewhere or ".." in PurePath(path.replace("\\", "/")).parts:
            raise ValueError(f"{folder} names {path!r:.80}, which is no file or folder in it")


def _said_in(file: Path, name: str) -> Any:
    content = read_json(file) if file.is_file() else None
    return content.get(name) if isinstance(content, dict) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _named(features: Mapping[str, Any]) -> dict[str, Any]:
    return {name.lower(): feature for name, feature in features.items()}


def _rows(
    splits: dict[str, Dataset], columns: Columns, name: str, place: Path, folder: Path | None
) -> Iterator[dict[str, Any]]:
    if folder is None:
        yield from _split_rows(splits, columns, name, place, None)
    else:
        with replacing(folder) as unfinished:
            unfinished.mkdir()
            yield from _split_rows(splits, columns, name, place, unfinished)


def _split_rows(
    splits: dict[str, Dataset], columns: Columns, name: str, place: Path, folder: Path | None
) -> Iterator[dict[str, Any]]:
    reader = PairReader(columns, place if folder is None else None)
    for split, dataset in splits.items():
        file = f"{name}, {split}"
        for column, feature in dataset.features.items():
            if isinstance(feature, Image):
                dataset = dataset.cast_column(column, Image(decode=False))
        for line, record in enumerate(dataset, start=1):
            record = _named(cast(dict[str, Any], record))
            if folder is not None:
                image = record[columns.image]
                record[columns.image] = _write_image(image, folder, place, f"{file}, line {line}")
            for row in reader.rows(record, file, line):
                if columns.split is None and len(splits) > 1:
                    row["split"] = SPLIT_NAMES.get(split.lower(), split)
                yield row


def _write_image(image: Any, folder: Path, place: Path, where: str) -> str:
    """The name of the file in `folder` that now holds the image; equal images have one."""
    content, path = (image["bytes"], image["path"]) if isinstance(image, dict) else (image, None)
    if content is None and path is not None:
        root = place.parent if place.is_file() else place
        inner = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path(path)
        try:
            content = file_inside(root, inner).read_bytes()
        except (OSError, ValueError) as error:
            raise ValueError(f"{where}: the image {path!r}: {error}") from error
    if not content:
        raise ValueError(f"{where}: there is no image")
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    original = PurePath(path or "")
    stem, suffix = (re.sub(r"[^\w.-]", "_", part) for part in (original.stem, original.suffix))
    stem = stem.encode()[:80].decode(errors="ignore")
    suffix = suffix if 0 < len(suffix.encode()) <= LONGEST_SUFFIX else _suffix(content)
    file = folder / (f"{stem}-{digest}{suffix}" if stem else f"{digest}{suffix}")
    if not file.exists():
        file.write_bytes(content)
    return file.name


def _suffix(content: bytes) -> str:
    try:
        with PillowImage.open(BytesIO(content)) as image:
            return f".{(image.format or 'image').lower()}"
    except Exception:  # whoever reads it will tell
        return ".image"
