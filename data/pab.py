"""PAB's own annotation files as a `datasets.Dataset`, and a labelled split as a retrieval benchmark.

The annotations are read once, line by line, into an Arrow file in the `datasets` cache; every later opening
maps that file into memory. No image is opened or looked for.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from datasets import Dataset

from .annotation_fields import SPLITS
from .drawn import is_drawn
from .pab_annotations import open_annotations

logger = logging.getLogger(__name__)
pc: Any = pyarrow.compute  # most of its functions are made when it is imported, unseen by type checkers

SUBSETS = ("random", "first", "balanced")

# Which videos are held out, and which of their pairs are shown, must be the same for everybody and for ever.
_VALIDATION_KEY = b"tpas validation"
_VALIDATION_SEED = 0
_MAX_VALIDATION_PAIRS = 2000


def load_pab(
    root: str | Path,
    split: str,
    pairs: int | None = None,
    seed: int = 42,
    *,
    subset: str = "random",
    validation_fraction: float = 0.02,
    max_validation_pairs: int = _MAX_VALIDATION_PAIRS,
    annotations: str | Path | Sequence[str | Path] | None = None,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """One split of PAB, memory-mapped, one row per caption, in the order of the files' numbers and lines.

    Columns: `image` (POSIX path relative to `root`), `caption`, `image_id`, `behaviour` ("normal" or
    "anomaly"), `action`, `scene`, `source_id`, `source_caption`, `hard_i` (relative to `root`, like `image`),
    `hard_c`, `hard_i_id`, `file` and `line` (where the row is written). What a row lacks is None; `image`,
    `caption`, `image_id`, `file` and `line` are never None. Identities are text: leading zeros stay.

    `split` is "train", "validation", "test", "ucc" or one of the multi-weather annotations, such as
    "multi-weather_dark_rain". PAB has no validation split: at most
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

    def read(written_as: str) -> Dataset:
        return open_annotations(Path(root), written_as, annotations, cache_dir)

    return select_pairs(
        read,
        split,
        pairs,
        seed,
        subset=subset,
        validation_fraction=validation_fraction,
        max_validation_pairs=max_validation_pairs,
    )


def select_pairs(
    read: Callable[[str], Dataset],
    split: str,
    pairs: int | None = None,
    seed: int = 42,
    *,
    subset: str = "random",
    validation_fraction: float = 0.02,
    max_validation_pairs: int | None = None,
    has_validation: bool = False,
    tells_sources: bool = True,
) -> Dataset:
    """The rows of a split as [`load_pab`] chooses them, whatever data they are of.

    Args:
        read: all rows that are written as a split, in `load_pab`'s columns.
        max_validation_pairs: None: 2,000 of what is cut from "train", all of a split of its own.
        has_validation: "validation" is a split of its own, and nothing is cut from "train".
        tells_sources: a row without source_id is worth a warning, where validation is cut by it.
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
    if max_validation_pairs is not None and max_validation_pairs < 1:
        raise ValueError(f"max_validation_pairs must be at least 1, got {max_validation_pairs}")
    if has_validation:
        validation_fraction = 0
    elif split == "validation" and validation_fraction == 0:
        raise ValueError("validation_fraction=0 leaves no 'validation' split: give a fraction above 0")

    written_as = "train" if split == "validation" and not has_validation else split
    dataset = read(written_as)
    if split == "validation":
        if has_validation:
            held_out, most = np.arange(len(dataset)), max_validation_pairs or len(dataset)
        else:
            held_out, _ = _cut_by_source(dataset, validation_fraction, tells_sources)
            most = max_validation_pairs or _MAX_VALIDATION_PAIRS
        if len(held_out) > most:
            held_out = _draw(held_out, most, _VALIDATION_SEED)
        return dataset.select(held_out)
    if split == "train":
        rest = np.arange(len(dataset))
        if validation_fraction > 0:
            _, rest = _cut_by_source(dataset, validation_fraction, tells_sources)
        if pairs is not None:
            if pairs > len(rest):
                raise ValueError(
                    f"pairs={pairs} asked for, but 'train' has {len(rest)} "
                    f"({len(dataset) - len(rest)} of {len(dataset)} are kept apart for validation)"
                )
            if subset == "first":
                rest = rest[:pairs]
            elif subset == "balanced":
                rest = _draw_balanced(rest, _table(dataset).column("behaviour"), pairs, seed)
            else:
                rest = _draw(rest, pairs, seed)
        if len(rest) < len(dataset):
            dataset = dataset.select(rest)
    return dataset


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
    columns = ["image", "caption", "image_id", "behaviour", "action", "scene", "source_id", "hard_i"]
    columns += ["file", "line"]
    rows = cast(dict[str, list[Any]], dataset.select_columns(columns).to_dict())
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


def annotation_places(dataset: Dataset) -> dict[str, str]:
    """File and line of each image of `load_pab`'s dataset."""
    columns = (dataset["image"], dataset["file"], dataset["line"])
    return {image: f"{file}, line {line}" for image, file, line in zip(*columns, strict=True)}


def rows_fingerprint(dataset: Dataset) -> str:
    """16 hexadecimal digits for all rows, whatever the files are called and wherever they lie."""
    digest = hashlib.blake2b(digest_size=8)
    table = _table(dataset)
    for name in sorted(set(table.column_names) - {"file", "line"}):
        digest.update(name.encode())
        chunks = table.column(name).chunks
        for chunk in chunks:
            digest.update(pc.binary_length(chunk).fill_null(-1).to_numpy().astype("<i4"))
        for chunk in chunks:
            together = pa.ListArray.from_arrays([0, len(chunk)], chunk.fill_null(""))
            digest.update(pc.binary_join(together, "")[0].as_buffer())
    return digest.hexdigest()


def dataset_name(root: Path) -> str:
    """What data are called whom nobody gave a name: as their folder, and "drawn" where they are."""
    name = Path(os.path.abspath(root)).name or str(root)  # the name of a link itself
    return f"{name} (drawn)" if is_drawn(root) else name


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def source_videos(dataset: Dataset) -> np.ndarray:
    """(N,) integers, equal for rows of one source video; without a `source_id`, for rows of one image."""
    table = _table(dataset.select_columns(["source_id", "image_id"]))
    videos = _video_names(table.column("source_id"), table.column("image_id"))
    return videos.combine_chunks().dictionary_encode().indices.to_numpy()


def _table(dataset: Dataset) -> pa.Table:
    return cast(pa.Table, dataset.with_format("arrow")[:])


def _video_names(source_ids: pa.ChunkedArray, image_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.coalesce(pc.replace_substring_regex(source_ids, pattern="(?s)_.*", replacement=""), image_ids)


def _cut_by_source(dataset: Dataset, fraction: float, warn: bool) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers, ascending, of the held-out pairs and of those that share nothing with them.

    Source videos are held out in the order of a hash of their names, for as long as they stay within
    `fraction` of the pairs, but at least one: a video's place in that order depends on nothing else.
    """
    table = _table(dataset)
    source_ids, image_ids = table.column("source_id"), table.column("image_id")
    if warn and source_ids.null_count:
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
    validation_ids, validation_images = image_ids.filter(held_out), table.column("image").filter(held_out)
    hard_ids, hard_images = table.column("hard_i_id"), table.column("hard_i")
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
