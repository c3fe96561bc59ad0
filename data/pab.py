"""PAB's own annotation files as a `datasets.Dataset`, and a labelled split as a retrieval benchmark.

The annotations are read once, line by line, into an Arrow file in the `datasets` cache; every later opening
maps that file into memory. No image is opened or looked for: `image_path` turns a row's `image` into a file.

The releases (github.com/Shuyu-XJTU/CMP, its workshop edition, the challenge's) differ in the files' prefix,
in the fields of a row and in the images' format; `_ANNOTATION_FILES` and `_pairs` are where that ends.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, NamedSplit, Value
from datasets.exceptions import DatasetGenerationError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "ucc")
SUBSETS = ("random", "first", "balanced")

# Relative to the root; the first that exists wins: of the same images, attr_ says all that the others say.
_ANNOTATION_FILES = {
    "train": (
        "annotation/train/attr_*.json",
        "annotation/train_attr/attr_*.json",
        "annotation/train/pair_*.json",
        "annotation/train/imgs_*.json",
    ),
    "test": ("annotation/test/attr.json", "annotation/test/pair.json"),
    "ucc": ("annotation/test/ucc.json",),
}
_BEHAVIOUR_OF_FOLDER = {"goal": "normal", "wentrong": "anomaly", "wentwrong": "anomaly"}
_IMAGE_SUFFIXES = (".jpg", ".webp", ".png")

_FEATURES = Features(
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

# Which videos are held out, and which of their pairs are shown, must be the same for everybody and for ever.
_VALIDATION_KEY = b"tpas validation"
_VALIDATION_SEED = 0


def load_pab(
    root: str | Path,
    split: str,
    pairs: int | None = None,
    seed: int = 42,
    *,
    subset: str = "random",
    validation_fraction: float = 0.02,
    max_validation_pairs: int = 2000,
    annotations: str | Path | Sequence[str | Path] | None = None,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """One split of PAB, memory-mapped, one row per caption, in the order of the files' numbers and lines.

    Columns: `image` (POSIX path relative to `root`), `caption`, `image_id`, `behaviour` ("normal" or
    "anomaly"), `action`, `scene`, `source_id`, `source_caption`, `hard_i` (relative to `root`, like `image`),
    `hard_c`, `hard_i_id`, `file` and `line` (where the row is written). What a row lacks is None; `image`,
    `caption`, `image_id`, `file` and `line` are never None. Identities are text: leading zeros stay.

    `split` is "train", "validation", "test" or "ucc". PAB has no validation split: at most
    `validation_fraction` of the training pairs, but at least one video's, are held out by source video
    (`source_id` before its underscore), the same videos for everybody. "validation" is the held-out pairs, a
    fixed choice of `max_validation_pairs` where there are more; "train" is what shares no video with the
    held-out pairs and names none of their images as hard negative. `validation_fraction=0` trains on all.

    `pairs` keeps exactly that many pairs of "train", chosen as `subset` says; smaller subsets lie in larger
    ones. "random" draws them by `seed`; "first" takes them from the beginning; "balanced" draws half of them
    among the normal and half among the anomalous pairs by `seed` (an odd number's last one is normal) and
    leaves out, with a warning that counts them, the pairs without behaviour.

    `annotations` names files, or folders of them, to read in place of those under `root`; image paths stay
    relative to `root`. `cache_dir` defaults to the `datasets` cache; processes may open it at the same time.

    Raises FileNotFoundError when there is no annotation file, and ValueError, naming file and line, for
    broken JSON, a missing or empty caption, image or image_id, a caption of punctuation alone, an action
    both normal and anomalous, and an image path that leaves the root.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if pairs is not None and split != "train":
        raise ValueError(f"pairs draws a subset of 'train', it cannot be used with {split!r}")
    if pairs is not None and pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}")
    if subset not in SUBSETS:
        raise ValueError(f"subset must be one of {', '.join(SUBSETS)}, got {subset!r}")
    if pairs is None and subset != "random":
        raise ValueError(f"subset={subset!r} says which pairs to keep: give pairs, how many")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
    if max_validation_pairs < 1:
        raise ValueError(f"max_validation_pairs must be at least 1, got {max_validation_pairs}")
    if split == "validation" and validation_fraction == 0:
        raise ValueError("validation_fraction=0 leaves no 'validation' split: give a fraction above 0")

    written_as = "train" if split == "validation" else split
    files = _find_annotations(Path(root), written_as, annotations)
    dataset = _open_as_arrow(files, written_as, cache_dir)
    if split == "validation":
        held_out, _ = _cut_by_source(dataset, validation_fraction)
        if len(held_out) > max_validation_pairs:
            held_out = _draw(held_out, max_validation_pairs, _VALIDATION_SEED)
        return dataset.select(held_out)
    if split == "train":
        rest = np.arange(len(dataset))
        if validation_fraction > 0:
            _, rest = _cut_by_source(dataset, validation_fraction)
        if pairs is not None:
            if pairs > len(rest):
                raise ValueError(
                    f"pairs={pairs} asked for, but 'train' has {len(rest)} "
                    f"({len(dataset) - len(rest)} of {len(dataset)} are kept apart for validation)"
                )
            if subset == "first":
                rest = rest[:pairs]
            elif subset == "balanced":
                rest = _draw_balanced(rest, dataset.data.column("behaviour"), pairs, seed)
            else:
                rest = _draw(rest, pairs, seed)
        if len(rest) < len(dataset):
            dataset = dataset.select(rest)
    return dataset


def image_path(root: str | Path, image: str) -> Path:
    """The file of a row's `image` or `hard_i`, always inside `root`, whether it exists or not.

    The challenge's release packs images as .webp under annotations that say .jpg: where the named file is not
    there, but exactly one of the same stem and another of PAB's suffixes (.jpg, .webp, .png), it is that one.

    Raises ValueError for an absolute path, a path with "..", and a link that leads out of `root`.
    """
    root = Path(root).resolve()
    path = root / _relative_path(image, "image_path")
    if not path.exists():
        others = [other for suffix in _IMAGE_SUFFIXES if (other := path.with_suffix(suffix)).exists()]
        if len(others) == 1:
            path = others[0]
    path = path.resolve()
    if not path.is_relative_to(root):
        raise ValueError(
            f"the image path {image!r} leads out of {root}, to {path}: give the folder where the images are "
            "as root, and that of the annotation files as annotations"
        )
    return path


@dataclass(frozen=True)
class RetrievalBenchmark:
    """Texts, a gallery, and which images answer which text.

    All but `gallery_ids` have one entry per query, in the order of the dataset; `relevant[i]` are the ids of
    `gallery_ids`, at least one, that answer query i. A gallery id is the image's path relative to the root.
    Behaviour, action and scene may be None.

    `hard_negatives[i]` are the ids of `gallery_ids` that show the same person behaving the other way: images
    of query i's source video (`source_id` before its underscore) that are annotated with the other behaviour
    and do not answer it; without a `source_id`, its `hard_i` where that is such an image. Often there is
    none. `hard_negatives` itself is None where nothing is known about sources.
    """

    query_ids: list[str]
    captions: list[str]
    query_behaviours: list[str | None]
    query_actions: list[str | None]
    query_scenes: list[str | None]
    gallery_ids: list[str]
    relevant: list[list[str]]
    hard_negatives: list[list[str]] | None = None

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for queries, gallery and relevance, not for the images."""
        content = [self.query_ids, self.captions, self.gallery_ids, self.relevant]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def retrieval_split(dataset: Dataset, gallery: Iterable[str] | None = None) -> RetrievalBenchmark:
    """Each row of `dataset` as a query into its own images, or into `gallery` (paths relative to the root).

    An image is relevant when it has the query's `image_id`; images of `gallery` that `dataset` does not
    mention are distractors. Query ids and the gallery's order come from hashes: PAB's files list normal and
    anomalous partners in turn, so a tie broken by row or file name would carry the answer into the ranking.

    Raises ValueError, naming file and line, for a query without a relevant image in the gallery.
    """
    rows = dataset.select_columns(
        [
            "image",
            "caption",
            "image_id",
            "behaviour",
            "action",
            "scene",
            "source_id",
            "hard_i",
            "file",
            "line",
        ]
    ).to_dict()
    gallery_ids = sorted(dict.fromkeys(rows["image"] if gallery is None else gallery), key=_digest)
    if not gallery_ids:
        raise ValueError("the gallery is empty")

    images_of: dict[str, set[str]] = {}
    for image, image_id in zip(rows["image"], rows["image_id"], strict=True):
        images_of.setdefault(image_id, set()).add(image)
    position = {image: index for index, image in enumerate(gallery_ids)}
    relevant = []
    for image_id, file, line in zip(rows["image_id"], rows["file"], rows["line"], strict=True):
        found = [image for image in images_of[image_id] if image in position]
        if not found:
            raise ValueError(
                f"{file}, line {line}: no image of the gallery has the query's image_id {image_id!r}; "
                "add its image to the gallery or leave the query out"
            )
        relevant.append(sorted(found, key=position.__getitem__))

    repeats: dict[tuple[str, str], int] = {}
    query_ids = []
    for pair in zip(rows["image"], rows["caption"], strict=True):
        repeats[pair] = repeats.get(pair, -1) + 1
        query_ids.append(_digest("\0".join((*pair, str(repeats[pair])))))
    return RetrievalBenchmark(
        query_ids=query_ids,
        captions=rows["caption"],
        query_behaviours=rows["behaviour"],
        query_actions=rows["action"],
        query_scenes=rows["scene"],
        gallery_ids=gallery_ids,
        relevant=relevant,
        hard_negatives=_hard_negatives(rows, relevant, position),
    )


def _hard_negatives(
    rows: dict[str, list[Any]], relevant: list[list[str]], position: dict[str, int]
) -> list[list[str]]:
    """See `RetrievalBenchmark`; `position` has the gallery's images as keys."""
    behaviour_of = dict(zip(rows["image"], rows["behaviour"], strict=True))
    images_of: dict[str, set[str]] = {}
    for image, source_id in zip(rows["image"], rows["source_id"], strict=True):
        if source_id is not None and image in position:
            images_of.setdefault(source_id.partition("_")[0], set()).add(image)
    hard_negatives = []
    for row, behaviour in enumerate(rows["behaviour"]):
        source_id, hard_image = rows["source_id"][row], rows["hard_i"][row]
        if source_id is not None:
            candidates = images_of.get(source_id.partition("_")[0], set())
        else:
            candidates = {hard_image} & position.keys()
        found = [
            image
            for image in candidates.difference(relevant[row])
            if behaviour is not None and behaviour_of.get(image) not in (None, behaviour)
        ]
        hard_negatives.append(sorted(found, key=position.__getitem__))
    return hard_negatives


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


# Finding the files


def _find_annotations(
    root: Path, split: str, annotations: str | Path | Sequence[str | Path] | None
) -> list[tuple[str, Path]]:
    """(name in messages and in the column `file`, path) of each file, by number: attr_2 before attr_10."""
    if not root.is_dir():
        raise FileNotFoundError(f"the root {root} is not a folder: give the one that holds PAB's annotation/")
    patterns = _ANNOTATION_FILES[split]
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
        found = [path for path in folder.glob(pattern) if "*" not in pattern or _number(path) >= 0]
        if found:
            return found
    return []


def _number(path: Path) -> int:
    """10 of attr_10.json, -1 of a name without a number."""
    match = re.fullmatch(r"[a-z]+_(\d+)", path.stem)
    return int(match[1]) if match else -1


# Reading them


def _open_as_arrow(files: list[tuple[str, Path]], split: str, cache_dir: str | Path | None) -> Dataset:
    """All files' pairs, from the cache, where `datasets` writes them under a lock, beside, and renames."""
    states = []
    for name, path in files:
        status = path.stat()
        states.append((name, str(path.resolve()), status.st_size, status.st_mtime_ns))
    try:
        return Dataset.from_generator(
            _all_pairs,
            features=_FEATURES,
            gen_kwargs={"files": tuple(files)},
            cache_dir=None if cache_dir is None else str(cache_dir),
            split=NamedSplit(split),
            fingerprint=_digest(json.dumps([_READER_VERSION, states])),
        )
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None


def _all_pairs(files: Iterable[tuple[str, Path]]) -> Iterator[dict[str, Any]]:
    empty = True
    for name, path in files:
        for line, record in _records(name, path):
            for pair in _pairs(record, name, line):
                empty = False
                yield pair
    if empty:
        raise ValueError(f"no pair in {', '.join(name for name, _ in files)}: the files are empty")


def _records(name: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of a file of JSON Lines, read line by line, or of one JSON array, read whole."""
    with path.open("rb") as stream:
        if stream.read(1024).decode("utf-8-sig", errors="ignore").lstrip().startswith("["):
            yield from _array_items(name, path.read_bytes())
            return
        stream.seek(0)
        for line, content in enumerate(stream, start=1):
            try:
                text = content.decode("utf-8-sig" if line == 1 else "utf-8")
                record = json.loads(text) if text.strip() else None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}, line {line}: not a line of JSON: {error}") from None
            if text.strip():
                yield line, record


def _array_items(name: str, content: bytes) -> Iterator[tuple[int, Any]]:
    """(line where it begins, value) of each item. `json.loads` would not say where an item begins."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}, line {line}: not UTF-8: {error}") from None
    decode = json.JSONDecoder().raw_decode
    blank = re.compile(r"[ \t\n\r]*")
    position = blank.match(text, text.index("[") + 1).end()
    line, counted = 1, 0
    if text[position : position + 1] == "]" and not text[position + 1 :].strip():
        return
    while True:
        line += text.count("\n", counted, position)
        counted = position
        try:
            item, position = decode(text, position)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            raise ValueError(f"{name}, line {line}: the JSON array is broken: {error}") from None
        yield line, item
        position = blank.match(text, position).end()
        if text[position : position + 1] == ",":
            position = blank.match(text, position + 1).end()
        elif text[position:].rstrip() == "]":
            return
        else:
            line += text.count("\n", counted, position)
            raise ValueError(f"{name}, line {line}: the JSON array is broken: expected ',' or a final ']'")


def _pairs(record: Any, file: str, line: int) -> Iterator[dict[str, Any]]:
    """The rows of one record, one per caption."""
    where = f"{file}, line {line}"
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object with 'image' and 'caption', got {record!r:.80}")
    image = _relative_path(_required_text(record, "image", where), where)
    normal, anomaly = _optional_text(record, "normal", where), _optional_text(record, "anomaly", where)
    if normal is not None and anomaly is not None:
        raise ValueError(f"{where}: both 'normal' ({normal!r}) and 'anomaly' ({anomaly!r}) given; keep one")
    if normal is not None:
        behaviour = "normal"
    elif anomaly is not None:
        behaviour = "anomaly"
    else:
        behaviour = _BEHAVIOUR_OF_FOLDER.get(PurePosixPath(image).parent.name)
    hard_image = _optional_text(record, "hard_i", where)
    if hard_image is not None:
        hard_image = _relative_path(hard_image, where)
        if image.startswith("train/") and not hard_image.startswith("train/"):
            hard_image = f"train/{hard_image}"

    hard_caption = _optional_text(record, "hard_c", where)

    captions = record.get("caption")
    if not isinstance(captions, list):
        captions = [captions]
    elif not captions:
        raise ValueError(f"{where}: 'caption' is an empty list")
    for caption in captions:
        caption = _required_text({"caption": caption}, "caption", where)
        if not _has_a_word(caption):
            raise ValueError(f"{where}: 'caption' holds no word, got {caption!r:.80}")
        yield {
            "image": image,
            "caption": caption,
            "image_id": _required_text(record, "image_id", where),
            "behaviour": behaviour,
            "action": anomaly if normal is None else normal,
            "scene": _optional_text(record, "scene", where),
            "source_id": _optional_text(record, "source_id", where),
            "source_caption": _optional_text(record, "source_caption", where),
            "hard_i": hard_image,
            "hard_c": hard_caption if hard_caption is not None and _has_a_word(hard_caption) else None,
            "hard_i_id": _optional_text(record, "hard_i_id", where),
            "file": file,
            "line": line,
        }


def _has_a_word(caption: str) -> bool:
    """Without a letter or digit nothing is left where punctuation is dropped, as X-VLM does."""
    return any(map(str.isalnum, caption))


def _required_text(record: dict[str, Any], key: str, where: str) -> str:
    text = _optional_text(record, key, where)
    if text is None:
        raise ValueError(f"{where}: {key!r} is missing or empty")
    return text


def _optional_text(record: dict[str, Any], key: str, where: str) -> str | None:
    """None for an absent, null or blank field. An identity written as a number becomes text."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be text, got {value!r:.80}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{where}: {key!r} holds half of a surrogate pair, which is no text: {value!a:.80}")
    return value if value.strip() else None


def _relative_path(image: str, where: str) -> str:
    path = PurePosixPath(image.replace("\\", "/"))
    drive = re.match("[A-Za-z]:", image)
    if path.is_absolute() or drive or not path.parts or ".." in path.parts or "\0" in image:
        raise ValueError(
            f"{where}: the image path {image!r} leaves the root; "
            "it must be relative to it, like 'train/imgs_0/goal/0.jpg'"
        )
    return str(path)


# Cutting and drawing


def source_videos(dataset: Dataset) -> np.ndarray:
    """(N,) integers, equal for rows of one source video; without a `source_id`, for rows of one image."""
    table = dataset.select_columns(["source_id", "image_id"]).with_format("arrow")[:]
    videos = _video_names(table.column("source_id"), table.column("image_id"))
    return videos.combine_chunks().dictionary_encode().indices.to_numpy()


def _video_names(source_ids: pa.ChunkedArray, image_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.coalesce(pc.replace_substring_regex(source_ids, pattern="(?s)_.*", replacement=""), image_ids)


def _cut_by_source(dataset: Dataset, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers, ascending, of the held-out pairs and of those that share nothing with them.

    Source videos are held out in the order of a hash of their names, for as long as they stay within
    `fraction` of the pairs, but at least one: a video's place in that order depends on nothing else.
    """
    source_ids, image_ids = dataset.data.column("source_id"), dataset.data.column("image_id")
    if source_ids.null_count:
        logger.warning(
            "%d of %d pairs have no source_id: each of their image_ids counts as a source video of its own, "
            "so near-duplicates may lie on both sides of the validation split",
            source_ids.null_count,
            len(dataset),
        )
    videos = _video_names(source_ids, image_ids)
    names, counts = videos.value_counts().flatten()
    if len(names) < 2:
        raise ValueError(
            f"all pairs come from one source video ({names[0]}): a validation split cannot be cut; "
            "add pairs of other videos, or train on everything with validation_fraction=0"
        )
    keys = [hashlib.blake2b(name.encode(), key=_VALIDATION_KEY).digest() for name in names.to_pylist()]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    pairs_so_far = np.cumsum(counts.to_numpy()[order])
    taken = max(1, int(np.searchsorted(pairs_so_far, fraction * len(dataset), side="right")))
    held_out = _is_in(videos, names.take(pa.array(order[:taken])))

    # A training pair also brings its hard negative, so that must not be a held-out image either.
    validation_ids, validation_images = (
        image_ids.filter(held_out),
        dataset.data.column("image").filter(held_out),
    )
    hard_ids, hard_images = dataset.data.column("hard_i_id"), dataset.data.column("hard_i")
    touches = pc.or_(
        held_out, pc.or_(_is_in(hard_ids, validation_ids), _is_in(hard_images, validation_images))
    )
    rest = np.flatnonzero(pc.invert(touches))
    if not len(rest):
        raise ValueError(
            "every pair outside the held-out source videos has one of their images as its hard negative: "
            "add pairs of other videos, or train on everything with validation_fraction=0"
        )
    return np.flatnonzero(held_out), rest


def _is_in(column: pa.ChunkedArray, values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=values, skip_nulls=True)


def _draw(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of `rows`, ascending: the head of a seeded permutation, so that a seed's draws are nested."""
    return np.sort(_shuffled(rows, seed)[:count])


def _draw_balanced(rows: np.ndarray, behaviours: pa.ChunkedArray, count: int, seed: int) -> np.ndarray:
    """`count` of `rows`, ascending, half of either behaviour: the first of each in `_draw`'s permutation.

    Raises ValueError, with the counts, where one behaviour has too few rows.
    """
    shuffled = _shuffled(rows, seed)
    wanted = {"normal": count - count // 2, "anomaly": count // 2}
    found = {
        behaviour: shuffled[pc.equal(behaviours, behaviour).fill_null(False).to_numpy()[shuffled]]
        for behaviour in wanted
    }
    without = len(rows) - sum(map(len, found.values()))
    normal, anomaly = len(found["normal"]), len(found["anomaly"])
    most = min(2 * normal, 2 * anomaly + 1)
    if count > most:
        raise ValueError(
            f"pairs={count} asked for, half of them anomalous, but 'train' has {normal} normal and {anomaly} "
            f"anomalous pairs, and {without} without behaviour: {most} at most can be balanced"
        )
    if without:
        logger.warning("%d of %d pairs have no behaviour and are left out", without, len(rows))
    return np.sort(np.concatenate([found[behaviour][:number] for behaviour, number in wanted.items()]))


def _shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    # RandomState's stream is frozen for ever (NEP 19); a Generator's may change with numpy's version.
    return rows[np.random.RandomState(seed).permutation(len(rows))]
