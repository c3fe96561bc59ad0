"""The pairs that a training step reads: images and captions from disk, augmented, as the model's inputs."""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ..data.pab import RetrievalBenchmark, retrieval_split
from ..data.pab_images import open_image
from ..models.interface import RetrievalProcessor
from ..processing_tpas import clean_caption
from .caption_augmentation import swap_left_right
from .image_augmentation import Augmentation

logger = logging.getLogger(__name__)

CaptionView = Callable[[str, random.Random], str]


class TrainingPairs(torch.utils.data.Dataset):
    """The pairs of `load_pab` with their images read and augmented.

    What is random about a pair depends on the seed, the epoch and its row, not on the worker or the process.
    An unreadable image raises, or with `skip_bad_images` the next readable pair takes its place: so all
    batches keep their size, which the contrastive loss over all processes needs. An item's `unreadable`
    names the images that were left out.

    Args:
        augmentation: of the images, or None.
        swap_left_right: swap left and right in the caption of a mirrored image.
        second_view: makes an item's `second_view` of its caption, or None.
        hard_negatives: read the images of `hard_i` too. An item's `hard_negative` is image and caption, or
            None where the row names none, or the same image, or an image that cannot be read.
        follow_links: see `image_path`.
    """

    def __init__(
        self,
        dataset: Dataset,
        root: Path,
        *,
        seed: int,
        augmentation: Augmentation | None = None,
        swap_left_right: bool = False,
        second_view: CaptionView | None = None,
        hard_negatives: bool = False,
        skip_bad_images: bool = False,
        follow_links: bool = True,
    ):
        self.dataset = dataset
        self.root = root
        self.seed = seed
        self.augmentation = augmentation
        self.swap_left_right = swap_left_right
        self.second_view = second_view
        self.hard_negatives = hard_negatives
        self.skip_bad_images = skip_bad_images
        self.follow_links = follow_links
        self.epoch = 0

    def begin_epoch(self, epoch: int) -> None:  # accelerate would call a `set_epoch` with numbers of its own
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        unreadable: list[str] = []
        for candidate in chain(range(row, len(self)), range(row)):
            pair = self.dataset[candidate]
            image = self._read(pair, "image", unreadable)
            if image is None:
                continue
            image, caption = self._augmented(image, pair["caption"], f"{self.seed} {self.epoch} {candidate}")
            item = {"image": image, "caption": caption, "image_id": pair["image_id"]}
            if self.second_view is not None:
                rng = random.Random(f"{self.seed} {self.epoch} {candidate} view")
                item["second_view"] = self.second_view(caption, rng)
            if self.hard_negatives:
                item["hard_negative"] = self._hard_negative(pair, candidate, unreadable)
            return item | {"unreadable": unreadable}
        raise ValueError(f"none of the {len(self)} training images can be read: {unreadable[0]}")

    def _read(self, pair: dict[str, Any], column: str, unreadable: list[str]) -> Image.Image | None:
        """The image; None, and a line in `unreadable`, for one to be left out."""
        try:
            return open_image(self.root, pair[column], place_of(pair), self.follow_links)
        except (OSError, ValueError) as error:
            if not self.skip_bad_images:
                raise
            unreadable.append(str(error))
            return None

    def _augmented(self, image: Image.Image, caption: str, seed: str) -> tuple[Image.Image, str]:
        if self.augmentation is None:
            return image, caption
        image, mirrored = self.augmentation(image, random.Random(seed))
        return image, swap_left_right(caption) if mirrored and self.swap_left_right else caption

    def _hard_negative(
        self, pair: dict[str, Any], row: int, unreadable: list[str]
    ) -> tuple[Image.Image, str] | None:
        same_image = pair["hard_i_id"] == pair["image_id"] or pair["hard_i"] == pair["image"]
        if None in (pair["hard_i"], pair["hard_c"]) or same_image:
            return None
        image = self._read(pair, "hard_i", unreadable)
        if image is None:
            return None
        # "counterpart" is in the seed of every earlier run.
        return self._augmented(image, pair["hard_c"], f"{self.seed} {self.epoch} {row} counterpart")


class SourceGroupedSampler(torch.utils.data.Sampler[int]):
    """All rows once, in an order drawn anew for each epoch, where `group_size` rows of a video stay together.

    A video's rows are dealt out to such groups anew each time; the last one may be smaller.

    Args:
        videos: (N,) what `pab.source_videos` returns.
    """

    def __init__(self, videos: np.ndarray, group_size: int, generator: torch.Generator):
        self.videos = videos
        self.group_size = group_size
        self.generator = generator

    def __len__(self) -> int:
        return len(self.videos)

    def __iter__(self) -> Iterator[int]:
        shuffled = torch.randperm(len(self.videos), generator=self.generator).numpy()
        rows = shuffled[np.argsort(self.videos[shuffled], kind="stable")]  # video by video
        opens_video = np.append(True, np.diff(self.videos[rows]) != 0)
        position = np.arange(len(rows))
        in_video = position - np.maximum.accumulate(np.where(opens_video, position, 0))
        group = np.cumsum(in_video % self.group_size == 0) - 1
        place = torch.randperm(int(group[-1]) + 1, generator=self.generator).numpy()
        yield from rows[np.argsort(place[group], kind="stable")].tolist()


def place_of(pair: dict[str, Any]) -> str:
    """Where a row of `load_pab` is written."""
    return f"{pair['file']}, line {pair['line']}"


@dataclass
class PairCollator:
    """Items of `TrainingPairs` to the inputs of `FineTuningObjective`, and the list `unreadable`.

    With `equal_texts_match` captions that read the same get one text id, and a hard negative whose caption
    reads as the pair's own is none. A second view counts as the caption that it was made of.
    """

    processor: RetrievalProcessor
    equal_texts_match: bool = False

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        images = [item["image"] for item in items]
        captions = [item["caption"] for item in items]
        inputs = {"image_ids": torch.tensor([stable_number(item["image_id"]) for item in items])}
        texts = [clean_caption(caption) for caption in captions] if self.equal_texts_match else []
        if texts:
            inputs["text_ids"] = torch.tensor(list(map(stable_number, texts)))
        if "second_view" in items[0]:
            captions += [item["second_view"] for item in items]
        if "hard_negative" in items[0]:
            # A pair without one fills its place with itself; the objective leaves it out.
            hard_negatives = [item["hard_negative"] or (item["image"], item["caption"]) for item in items]
            images += [image for image, _ in hard_negatives]
            captions += [caption for _, caption in hard_negatives]
            there = [item["hard_negative"] is not None for item in items]
            if texts:
                others = [clean_caption(caption) for _, caption in hard_negatives]
                there = [one and text != other for one, text, other in zip(there, texts, others, strict=True)]
            inputs["has_hard_negative"] = torch.tensor(there)
        unreadable = [message for item in items for message in item["unreadable"]]
        return dict(self.processor(images=images, text=captions)) | inputs | {"unreadable": unreadable}


def stable_number(text: str) -> int:
    """63 bits that stand for a text, the same in every process (as `hash` of a string is not)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def validation_benchmark(
    dataset: Dataset, root: Path, *, skip_bad_images: bool, follow_links: bool = True
) -> RetrievalBenchmark:
    """The validation split's benchmark. Reads each image once, lest the first epoch end in an error.

    Raises:
        OSError, ValueError: for an unreadable image; with `skip_bad_images`, if all are.
    """
    readable = []
    for row in range(len(dataset)):
        pair = dataset[row]
        try:
            open_image(root, pair["image"], place_of(pair), follow_links)
        except (OSError, ValueError) as error:
            if not skip_bad_images:
                raise
            logger.warning("left out of the validation split: %s", error)
        else:
            readable.append(row)
    if not readable:
        raise ValueError(f"none of the {len(dataset)} validation images can be read")
    return retrieval_split(dataset.select(readable))
