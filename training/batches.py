"""Which pairs a run trains on, and the batches that it makes of them."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..data.json_records import read_json
from ..data.pab import RetrievalBenchmark, rows_fingerprint, source_videos
from ..data.pab_images import image_path
from ..data.retrieval_data import RetrievalData
from ..engine.encoding import encode_texts
from ..models.interface import RetrievalModel, RetrievalProcessor
from ..models.unread_texts import warn_of_unread
from .arguments import FineTuningArguments
from .caption_augmentation import eda_view
from .checkpointing import IMAGE_SIZES
from .data import PairCollator, SourceGroupedSampler, TrainingPairs, place_of, validation_benchmark
from .image_augmentation import Augmentation
from .processes import main_process_first, of_main_process
from .run_folder import SUBSET_FILE
from .subsets import diverse_subset

POOL_OF_A_DIVERSE_SUBSET = 20  # times its size
IMAGES_LOOKED_AT = 16  # to tell one edition of the images from another
CAPTIONS_LOOKED_AT = 10_000  # for what the model does not read of them; some seconds


def validation_cut(arguments: FineTuningArguments) -> dict[str, Any]:
    """What of the annotated pairs is left out of training, and what of that is evaluated."""
    return {name: getattr(arguments, name) for name in ("validation_fraction", "max_validation_pairs")}


def open_data(arguments: FineTuningArguments, accelerator: Accelerator) -> RetrievalData:
    with main_process_first(accelerator):  # it fills the cache of rows for the others
        return RetrievalData.open(arguments.data_root, arguments.image_root)


def load_validation_pairs(
    arguments: FineTuningArguments, data: RetrievalData, accelerator: Accelerator
) -> RetrievalBenchmark:
    """The validation split; each of its images can be read."""
    with main_process_first(accelerator):
        pairs = data.pairs("validation", **validation_cut(arguments))
    skip = arguments.on_bad_image == "skip"
    return validation_benchmark(
        pairs, data.image_root, skip_bad_images=skip, follow_links=arguments.follow_links
    )


def load_training_pairs(
    arguments: FineTuningArguments,
    data: RetrievalData,
    model: RetrievalModel,
    processor: RetrievalProcessor,
    accelerator: Accelerator,
) -> tuple[Dataset, list[int] | None]:
    """The pairs to train on: all but those of the validation split, or the subset that is asked for.

    Beside them a diverse subset's rows among those it was chosen from. They are kept with the run, because
    another number of threads rounds otherwise and might choose others.
    """

    def load(pairs: int | None, subset: str = "random") -> Dataset:
        cut = validation_cut(arguments)
        with main_process_first(accelerator):  # it fills the cache of annotations for the others
            return data.pairs("train", pairs, arguments.seed, subset=subset, **cut)

    if arguments.subset != "diverse":
        return load(arguments.pairs, arguments.subset), None
    everything, wanted = load(None), cast(int, arguments.pairs)
    if wanted > len(everything):
        raise ValueError(f"--pairs {wanted} asked for, but there are {len(everything)} to train on")
    # To choose from all of PAB would take hours; the seed draws a pool of it.
    pool = load(min(len(everything), POOL_OF_A_DIVERSE_SUBSET * wanted))
    kept = Path(arguments.output_dir) / SUBSET_FILE
    if arguments.resume_from_checkpoint is not None and kept.exists():
        rows = read_json(kept)
    else:
        cast(nn.Module, model).to(accelerator.device).eval()
        embeds = encode_texts(model, processor, pool["caption"], accelerator=accelerator).embeds
        rows = of_main_process(
            accelerator, lambda: sorted(diverse_subset(embeds, wanted, arguments.seed).tolist())
        )
    return pool.select(rows), rows


def data_identity(data: RetrievalData) -> dict[str, Any]:
    """What data are, wherever they lie: all rows of their annotations, and the sizes of a few images.

    To look at every image of PAB would take minutes on a network's disk; other editions differ in most.
    """

    def size_of(image: str) -> int | None:
        try:
            return image_path(data.image_root, image).stat().st_size
        except (OSError, ValueError):  # the training names it, with its place, when it comes to it
            return None

    dataset = data.training_rows()
    rows = np.linspace(0, len(dataset) - 1, min(IMAGES_LOOKED_AT, len(dataset))).astype(int)
    sizes = [size_of(image) for image in dataset.select(rows)["image"]]
    return {"data_fingerprint": rows_fingerprint(dataset), IMAGE_SIZES: sizes}


def warn_of_unread_captions(dataset: Dataset, processor: RetrievalProcessor) -> None:
    """Logs what the model does not read of the captions; of many, of a sample that is spread evenly."""
    looked_at = dataset
    if len(dataset) > CAPTIONS_LOOKED_AT:
        looked_at = dataset.select(range(0, len(dataset), -(-len(dataset) // CAPTIONS_LOOKED_AT)))
    places = [place_of(looked_at[row]) for row in range(len(looked_at))]
    warn_of_unread(processor, looked_at["caption"], places)


def build_loader(
    arguments: FineTuningArguments,
    dataset: Dataset,
    image_root: Path,
    processor: RetrievalProcessor,
    accelerator: Accelerator,
    generator: torch.Generator,
) -> tuple[TrainingPairs, DataLoader]:
    """The pairs, and the batches of this process, in an order that `generator` draws anew for each epoch.

    Raises:
        ValueError: the pairs do not fill a batch of all processes.
    """
    batch_of_all = arguments.batch_size * accelerator.num_processes
    if len(dataset) < batch_of_all:
        raise ValueError(
            f"{len(dataset)} training pairs do not fill one batch of {batch_of_all} (--batch_size "
            f"{arguments.batch_size} on {accelerator.num_processes} processes): lower it, or take more pairs"
        )
    augmentation = None
    if arguments.augmentation or arguments.erasing_probability:
        upstream: dict[str, Any] = {"crop_probability": arguments.crop_probability}
        erasing_alone: dict[str, Any] = {"crop_probability": 0.0, "flip_probability": 0.0, "operations": 0}
        augmentation = Augmentation(
            processor.image_size,
            erasing_probability=arguments.erasing_probability,
            **(upstream if arguments.augmentation else erasing_alone),
        )
    pairs = TrainingPairs(
        dataset,
        image_root,
        seed=arguments.seed,
        augmentation=augmentation,
        swap_left_right=arguments.swap_left_right,
        second_view=eda_view if arguments.second_view_weight else None,
        hard_negatives=arguments.hard_negatives,
        skip_bad_images=arguments.on_bad_image == "skip",
        follow_links=arguments.follow_links,
    )
    sampler: Sampler | None = None
    if arguments.source_group_size > 1:
        sampler = SourceGroupedSampler(source_videos(dataset), arguments.source_group_size, generator)
    elif arguments.group_by_length:
        lengths = [len(caption.split()) for caption in dataset["caption"]]
        sampler = LengthGroupedSampler(batch_of_all, lengths=lengths, generator=generator)
    loader = DataLoader(
        pairs,
        batch_size=arguments.batch_size,
        sampler=sampler,
        shuffle=sampler is None,
        drop_last=True,
        num_workers=arguments.num_workers,
        prefetch_factor=arguments.prefetch_factor if arguments.num_workers else None,
        pin_memory=accelerator.device.type == "cuda",
        collate_fn=PairCollator(processor, arguments.equal_texts_match),
        generator=generator,
    )
    return pairs, accelerator.prepare(loader)
