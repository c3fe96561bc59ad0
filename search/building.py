"""Encodes images into a gallery's shards: over any number of processes, from where a kill stopped it."""

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.image_sources import SourceImage
from ..engine.encoding import collated, encode_images
from ..engine.fastest import encoder_for
from ..modeling_tpas import TPASModel
from ..models.interface import Encoder
from ..processing_tpas import TPASProcessor
from .manifest import (
    SHARDS,
    GalleryError,
    GallerySettings,
    builder_lock,
    explained_write_errors,
    new_manifest,
    read_manifest,
)
from .shards import (
    ShardRow,
    id_hash,
    jpeg_thumbnail,
    list_shards,
    read_shard,
    shard_name,
    unlisted_shards,
    write_shard,
)
from .stored_gallery import StoredGallery

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedImage:
    """An image as the model takes it.

    Attributes:
        inputs: what the processor makes of it, by name, each (1, ...).
        thumbnail: JPEG, or None where none is kept.
        root, path: as in `SourceImage`.
    """

    inputs: dict[str, Tensor]
    thumbnail: bytes | None
    root: str | None
    path: str | None


def build_shards(
    model: TPASModel,
    processor: TPASProcessor,
    images: Iterable[SourceImage],
    directory: Path,
    settings: GallerySettings,
    *,
    shard_size: int,
    batch_size: int,
    workers: int,
    accelerator: "Accelerator | None",
) -> None:
    """Adds the images whose ids the gallery in `directory` lacks, and makes the gallery if there is none.

    Which images share a shard, and a batch of the model, depends on their order alone: neither on the number
    of processes nor on where an earlier build was stopped. Every process of `accelerator` must call it, with
    the same images; each encodes every n-th shard.

    Raises:
        GalleryError: the gallery was made otherwise, another build runs, or the disk failed.
        ValueError: an id occurs twice.
    """
    for name, value in (("shard_size", shard_size), ("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    processes, rank = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    expected = length_hint(images) or None
    with _shared_errors(processes):  # before there is a directory: the first may be no image at all
        images = iter(images)
        images = chain(list(islice(images, 1)), images)
    with ExitStack() as stack:
        plans = []
        with _shared_errors(processes):
            if rank == 0:
                stack.enter_context(builder_lock(directory))
                with explained_write_errors(directory):
                    (directory / SHARDS).mkdir(exist_ok=True)
                    plans.append(_Plan.read(directory, settings))
        (plan,) = gathered(plans, processes)

        progress = tqdm(
            desc="encoding images",
            unit="image",
            total=expected,
            leave=False,
            disable=None if rank == 0 else True,  # None: only on a terminal
        )
        encoder = _ShardEncoder(model, processor, directory, settings, batch_size, workers, progress)
        with _shared_errors(processes), progress, encoder, torch.inference_mode():
            for number, shard in enumerate(_runs(plan.missing(images, progress), shard_size)):
                if number % processes == rank:
                    encoder.encode(plan.first_shard + number, shard, plan.finished)
                else:
                    for _ in shard:
                        progress.update()

        if rank == 0 and plan.already:
            logger.info(
                "%d images were not read: their ids are in the gallery %s already", plan.already, directory
            )
        with _shared_errors(processes), explained_write_errors(directory):
            if rank == 0:
                _finish(directory, settings)


def gathered(own: list[Any], processes: int) -> list[Any]:
    """What each of the processes has, one after the other."""
    if processes == 1:
        return own
    from accelerate.utils import gather_object  # a search, which imports this, need not wait for it

    return gather_object(own)


@contextmanager
def _shared_errors(processes: int) -> Iterator[None]:
    """Lets an error of one process end all: at its end the processes wait for each other."""
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    messages = gathered([None if error is None else str(error)], processes)
    if error is not None:
        raise error
    for message in messages:
        if message is not None:
            raise GalleryError(f"another process stopped: {message}")


@dataclass
class _Plan:
    """What is done.

    Attributes:
        known: hashes of the gallery's ids.
        finished: ids of the shards that a killed build finished, unreadable images among them.
    """

    first_shard: int
    known: set[int]
    finished: set[str]
    already: int = 0  # images met whose ids the manifest lists

    @classmethod
    def read(cls, directory: Path, settings: GallerySettings) -> "_Plan":
        manifest = read_manifest(directory)
        known = set()
        if manifest is not None:
            settings.check_equal(manifest["settings"], directory)
            stored = StoredGallery(directory)
            _ = stored.embeddings  # checks their files, which hold the hashes too
            known = set(stored.id_hashes.tolist())
        finished = set()
        first_shard = manifest["next_shard"] if manifest else 0
        for name in unlisted_shards(directory, manifest or new_manifest(settings)):
            shard, records = read_shard(directory, name)
            settings.check_equal(shard["settings"], directory)
            finished |= {image["id"] for image in records["pictures"]} | records["unreadable"].keys()
        return cls(first_shard, known, finished)

    def missing(self, images: Iterable[SourceImage], progress: tqdm) -> Iterator[SourceImage]:
        """The images that the manifest does not list; those of finished shards too, which count."""
        seen = set()
        for image in images:
            key = id_hash(image.id)
            if key in seen:
                raise ValueError(f"two images have the id {image.id!r}")
            seen.add(key)
            if key in self.known:
                self.already += 1
                progress.update()
            else:
                yield image


def _runs(images: Iterator[SourceImage], size: int) -> Iterator[Iterator[SourceImage]]:
    """Every `size` images, each run to be used up before the next: a shard may not fit into the memory."""
    for first in images:
        yield chain([first], islice(images, size - 1))


class _ShardEncoder:
    """Reads images in threads, ahead of the model, and writes what the model makes of them.

    Threads are enough, since Pillow decodes and resizes without Python's lock, and encoding an image takes
    many times longer: `benchmarks/gallery_decoding.py` shows that the encoder hardly waits.
    """

    def __init__(
        self,
        model: TPASModel,
        processor: TPASProcessor,
        directory: Path,
        settings: GallerySettings,
        batch_size: int,
        workers: int,
        progress: tqdm,
    ):
        self.model = model
        self.processor = processor
        self.directory = directory
        self.settings = settings
        self.batch_size = batch_size
        self.progress = progress
        self.threads = ThreadPoolExecutor(workers, thread_name_prefix="image")

    def __enter__(self) -> "_ShardEncoder":
        return self

    def __exit__(self, *_) -> None:
        self.threads.shutdown(cancel_futures=True)

    @cached_property
    def encoder(self) -> Encoder:
        return encoder_for(self.model)  # which copies the weights: not before there is an image

    def encode(self, number: int, images: Iterator[SourceImage], finished: set[str]) -> None:
        """Writes the shard of these images, without those that a killed build finished."""
        ids, rows, unreadable = [], [], {}
        for batch in self._ahead(images, finished):
            prepared = {}
            for image_id, future in batch.items():
                try:
                    prepared[image_id] = future.result()
                except (OSError, ValueError) as error:
                    logger.warning("left out %s: %s", image_id, error)
                    unreadable[image_id] = str(error)
            if prepared:
                inputs = collated([image.inputs for image in prepared.values()])
                kept = self.settings.tokens
                embeds, tokens = encode_images(self.encoder, inputs, getattr(torch, kept) if kept else None)
                self._check_finite(list(prepared), embeds, tokens)
                for place, (image_id, image) in enumerate(prepared.items()):
                    own = None if tokens is None else tokens[place]
                    row = ShardRow(image_id, embeds[place], own, image.root, image.path, image.thumbnail)
                    rows.append(row)
            ids += batch
            self.progress.update(len(batch))
        if ids:
            with explained_write_errors(self.directory):
                write_shard(self.directory, shard_name(number, ids), self.settings, rows, unreadable)

    def _ahead(
        self, images: Iterator[SourceImage], finished: set[str]
    ) -> Iterator[dict[str, Future[PreparedImage]]]:
        """Batches of images by id, while the threads already read the next one.

        Only the threads get the images themselves, which may hold an image each: it goes once it was read.
        """
        ready, coming = {}, {}
        for image in images:
            if image.id in finished:
                self.progress.update()
                continue
            coming[image.id] = self.threads.submit(self._prepare, image.until_read())
            if len(coming) == self.batch_size:
                if ready:
                    yield ready
                ready, coming = coming, {}
        yield from filter(None, (ready, coming))

    def _check_finite(self, ids: Sequence[str], embeds: Tensor, tokens: Tensor | None) -> None:
        """Raises GalleryError: a search could place such an image nowhere."""
        for image_id in _not_finite(ids, embeds):
            raise GalleryError(
                f"the model's embedding of image {image_id!r} is not finite: its weights are damaged, or "
                f"{self.encoder.dtype} is too narrow for them"
            )
        for image_id in () if tokens is None else _not_finite(ids, tokens):
            raise GalleryError(
                f"the image tokens of image {image_id!r} are too large for {self.settings.tokens}: build "
                "another gallery with tokens=float32"
            )

    def _prepare(self, image: SourceImage) -> PreparedImage:
        loaded = image.load()
        if self.settings.tokens is None and image.path is None:
            raise GalleryError(
                f"image {image.id!r} is no file to compute its tokens from again: keep the tokens"
            )
        size = self.settings.thumbnail_size
        thumbnail = None if size is None else jpeg_thumbnail(loaded, size)
        return PreparedImage(dict(self.processor(images=[loaded])), thumbnail, image.root, image.path)


def _not_finite(ids: Sequence[str], rows: Tensor) -> list[str]:
    """The ids of images whose rows, (n, ...) of n, hold NaN or infinity."""
    finite = rows.flatten(1).isfinite().all(dim=1).tolist()
    return [image_id for image_id, is_finite in zip(ids, finite, strict=True) if not is_finite]


def _finish(directory: Path, settings: GallerySettings) -> None:
    manifest = read_manifest(directory) or new_manifest(settings)
    list_shards(directory, manifest, unlisted_shards(directory, manifest))
    listed = {shard["name"] for shard in manifest["shards"]}
    for path in (directory / SHARDS).iterdir():
        if path.name not in listed:  # none of its images could be read
            shutil.rmtree(path)
    if manifest["unreadable"]:
        logger.warning(
            "%d images could not be read and are not in the gallery %s",
            len(manifest["unreadable"]),
            directory,
        )
