"""Encodes images into a gallery's shards: over any number of processes, from where a kill stopped it."""

import logging
import shutil
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from itertools import chain, islice
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.image_folders import LeftOut
from ..data.image_sources import FolderImages, SourceImage, file_state
from ..data.moments import Moment
from ..data.whole_files import file_checksum
from ..engine.encoding import collated, encode_images
from ..engine.fastest import encoder_for
from ..models.interface import Encoder, RetrievalModel, RetrievalProcessor, can_match
from ..models.loading import source_of
from ..models.model_source import ModelSource
from .arguments import OnClash
from .columns import read_columns
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
from .stored_gallery import Record, StoredGallery, delete_images

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

SILENCE = timedelta(hours=2)  # of a machine, then it is gone; processes meet after each shard


@dataclass(frozen=True)
class PreparedImage:
    """An image as the model takes it.

    Attributes:
        inputs: what the processor makes of it, by name, each (1, ...).
        thumbnail: JPEG, or None where none is kept.
        content, state: as in `ShardRow`.
        root, path, moment: as in `SourceImage`.
    """

    inputs: dict[str, Tensor]
    thumbnail: bytes | None
    content: str | None
    state: list[int] | None
    root: str | None
    path: str | None
    moment: Moment | None


def build_shards(
    model: RetrievalModel,
    processor: RetrievalProcessor,
    images: Iterable[SourceImage],
    directory: Path,
    settings: GallerySettings,
    *,
    on_clash: OnClash,
    shard_size: int,
    batch_size: int,
    workers: int,
    accelerator: "Accelerator | None",
) -> None:
    """Adds the images that the gallery in `directory` lacks, and makes the gallery if there is none.

    Which images share a shard, and a batch of the model, depends on their order alone: neither on the number
    of processes nor on where an earlier build was stopped. Every process of `accelerator` must call it, with
    the same images; each encodes every n-th shard. Where one fails or is gone, all end after their shard.

    Raises:
        GalleryError: the gallery was made otherwise, another build runs, the disk failed, or with the
            `on_clash` "error" the gallery has another image of an id.
        ValueError: an id occurs twice.
    """
    if on_clash not in get_args(OnClash):
        raise ValueError(f"on_clash must be one of {get_args(OnClash)}, got {on_clash!r}")
    for name, value in (("shard_size", shard_size), ("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    processes, rank = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    expected = length_hint(images) or None
    with _shared_errors(processes):  # before there is a directory: the first may be no image at all
        if on_clash == "replace":
            images = list(images)
        listed = images if isinstance(images, list) else None
        images = iter(images)
        images = chain(list(islice(images, 1)), images)
        if rank == 0 and on_clash == "replace" and listed is not None:
            _forget_others(directory, settings, listed)
    with ExitStack() as stack:
        plans = []
        with _shared_errors(processes):
            if rank == 0:
                stack.enter_context(builder_lock(directory))
                with explained_write_errors(directory):
                    (directory / SHARDS).mkdir(exist_ok=True)
                    plans.append(_Plan.read(directory, settings))
        (plan,) = gathered(plans, processes)
        with _shared_errors(processes):
            if on_clash == "error" and listed is not None:  # not after hours of encoding
                for image in listed[rank::processes]:
                    plan.refuse_another(image)
        compare = on_clash == "error" and listed is None

        progress = tqdm(
            desc="encoding images",
            unit="image",
            total=expected,
            leave=False,
            disable=None if rank == 0 else True,  # None: only on a terminal
        )
        encoder = _ShardEncoder(model, processor, directory, settings, batch_size, workers, progress)
        with _shared_errors(processes), progress, encoder, torch.inference_mode():
            for number, shard in enumerate(_runs(plan.missing(images, progress, compare), shard_size)):
                if number % processes == rank:
                    encoder.encode(plan.first_shard + number, shard, plan.finished)
                else:
                    for _ in shard:
                        progress.update()
                if number % processes == processes - 1:  # not after hours that the others went on in vain
                    _end_with_others(gathered([None], processes))

        if rank == 0 and plan.already:
            logger.info(
                "%d images are in the gallery %s already and were not encoded again", plan.already, directory
            )
        with _shared_errors(processes), explained_write_errors(directory):
            if rank == 0:
                _finish(directory, settings, source_of(model))


class _AnotherStoppedError(GalleryError):
    """Another process of the build stopped or is gone; all of them know."""


def gathered(own: list[Any], processes: int) -> list[Any]:
    """What each of the processes has, one after the other.

    Raises:
        GalleryError: one of them is gone; see `SILENCE`.
    """
    if processes == 1:
        return own
    from accelerate.utils import gather_object  # a search, which imports this, need not wait for it

    try:
        return gather_object(own)
    except RuntimeError as error:
        raise _AnotherStoppedError(
            "another process of the build is gone, or its machine: what was finished is kept, start all of "
            "them again and they go on from there"
        ) from error


@contextmanager
def _shared_errors(processes: int) -> Iterator[None]:
    """Lets an error of one process end all: at its end the processes wait for each other."""
    error = None
    try:
        yield
    except _AnotherStoppedError:
        raise
    except Exception as caught:
        error = caught
    messages = gathered([None if error is None else str(error)], processes)
    if error is not None:
        raise error
    _end_with_others(messages)


def _end_with_others(messages: list[str | None]) -> None:
    """Raises GalleryError where a process said why it stopped."""
    for message in messages:
        if message is not None:
            raise _AnotherStoppedError(f"another process stopped: {message}")


def report_left_out(images: Iterable[SourceImage], stored: StoredGallery) -> None:
    """Says in one line what of the images, and of the folder that they are from, is not in the gallery."""
    left_out, unreadable, place = LeftOut(), stored.unreadable, str(stored.directory)
    if isinstance(images, FolderImages):
        left_out, place = images.left_out, images[0].root or place
        unreadable = {image.id: unreadable[image.id] for image in images if image.id in unreadable}
    left_out.with_unreadable(unreadable).report(place)


def is_same(image: SourceImage, record: Record) -> bool | None:
    """Whether an image is the one that a gallery's record is of; None where that cannot be told.

    It is told by the file's content, wherever it lies now, which is not read where the file's state is the
    recorded one. Early versions recorded neither: there the recorded file is read, if it is another one.
    """
    file = image.file
    try:
        if file is not None and record.get("state") == file_state(file):
            return True
        before = record.get("content")
        if before is None:
            if record["path"] is None:
                return None
            recorded = Path(record["root"] or "", record["path"])
            if recorded == file:
                return None
            before = file_checksum(recorded)
        now = image.content()
    except OSError:
        return None
    return None if now is None else now == before


def _forget_others(directory: Path, settings: GallerySettings, images: Sequence[SourceImage]) -> None:
    """Deletes what the gallery has under the ids of other images."""
    with builder_lock(directory):
        plan = _Plan.read(directory, settings)
        others = {image.id for image in images if plan.other(image) is not None}
        for shard in {plan.finished[name][0] for name in others & plan.finished.keys()}:
            shutil.rmtree(directory / SHARDS / shard)  # not listed yet, so all of it is encoded again
    if stale := others - plan.finished.keys():
        delete_images(directory, stale)


@dataclass
class _Plan:
    """What is done.

    Attributes:
        known: the gallery's rows by the hashes of their ids.
        finished: by the ids of the shards that a killed build finished, the shard and the image's record.
            What could not be read is not among them: it is tried again.
    """

    directory: Path
    first_shard: int
    known: dict[int, int]
    finished: dict[str, tuple[str, Record]]
    already: int = 0  # images met that the manifest lists

    @classmethod
    def read(cls, directory: Path, settings: GallerySettings) -> "_Plan":
        manifest = read_manifest(directory)
        known: dict[int, int] = {}
        if manifest is not None:
            settings.check_equal(manifest["settings"], directory, manifest["model"])
            stored = StoredGallery(directory)
            _ = stored.embeddings  # checks their files, which hold the hashes too
            known = {own: row for row, own in enumerate(stored.id_hashes.tolist())}
        finished: dict[str, tuple[str, Record]] = {}
        first_shard = manifest["next_shard"] if manifest else 0
        for name in unlisted_shards(directory, manifest or new_manifest(settings)):
            shard, records = read_shard(directory, name)
            settings.check_equal(shard["settings"], directory)
            finished |= {image["id"]: (name, image) for image in records["pictures"]}
        return cls(directory, first_shard, known, finished)

    @cached_property
    def stored(self) -> StoredGallery:
        return StoredGallery(self.directory)

    def other(self, image: SourceImage) -> Record | None:
        """What there is under the image's id, if that is another image."""
        row = self.known.get(id_hash(image.id))
        record = self.finished.get(image.id, ("", None))[1] if row is None else self.stored.record(row)
        return record if record is not None and is_same(image, record) is False else None

    def refuse_another(self, image: SourceImage) -> None:
        """Raises GalleryError, naming both and the ways out, if there is another image of the id."""
        record = self.other(image)
        if record is None:
            return
        there = "an image that was no file"
        if record["path"] is not None:
            there = str(Path(record["root"] or "", record["path"]))
        here, again = str(image.file or "this one"), "--on_clash replace encodes it again, skip keeps what is"
        if here == there:
            raise GalleryError(
                f"{here} was changed since it was encoded into the gallery {self.directory}: {again}"
            )
        prefix = f"{Path(image.root or '').name or 'NAME'}/"
        raise GalleryError(
            f"two images have the id {image.id!r}: {there} is in the gallery {self.directory}, and {here} is "
            f"another: --id_prefix {prefix} makes other ids of what is added, {again}"
        )

    def missing(self, images: Iterable[SourceImage], progress: tqdm, compare: bool) -> Iterator[SourceImage]:
        """The images that the manifest does not list; those of finished shards too, which count.

        Args:
            compare: raise GalleryError where another image has the id.
        """
        seen = set()
        for image in images:
            key = id_hash(image.id)
            if key in seen:
                raise ValueError(f"two images have the id {image.id!r}")
            seen.add(key)
            if compare:
                self.refuse_another(image)
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
        model: RetrievalModel,
        processor: RetrievalProcessor,
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
        # Which copies the weights: not before there is an image.
        return encoder_for(self.model, in_bf16=self.settings.bf16)

    def encode(self, number: int, images: Iterator[SourceImage], finished: Container[str]) -> None:
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
                    file = image.root, image.path, image.thumbnail, image.content, image.state, image.moment
                    rows.append(ShardRow(image_id, embeds[place], own, *file))
            ids += batch
            self.progress.update(len(batch))
        if ids:
            with explained_write_errors(self.directory):
                write_shard(self.directory, shard_name(number, ids), self.settings, rows, unreadable)

    def _ahead(
        self, images: Iterator[SourceImage], finished: Container[str]
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
        state = None if image.file is None else file_state(image.file)
        loaded, content = image.load(), image.content()
        if image.file is not None and file_state(image.file) != state:
            content = state = None  # written to meanwhile: what was read cannot be told
        if self.settings.tokens is None and image.path is None and can_match(self.model):
            raise GalleryError(
                f"image {image.id!r} is no file to compute its tokens from again: keep the tokens"
            )
        size = self.settings.thumbnail_size
        thumbnail = None if size is None else jpeg_thumbnail(loaded, size)
        inputs = dict(self.processor(images=[loaded]))
        return PreparedImage(inputs, thumbnail, content, state, image.root, image.path, image.moment)


def _not_finite(ids: Sequence[str], rows: Tensor) -> list[str]:
    """The ids of images whose rows, (n, ...) of n, hold NaN or infinity."""
    finite = rows.flatten(1).isfinite().all(dim=1).tolist()
    return [image_id for image_id, is_finite in zip(ids, finite, strict=True) if not is_finite]


def _finish(directory: Path, settings: GallerySettings, source: ModelSource | None) -> None:
    manifest = read_manifest(directory) or new_manifest(settings)
    manifest["model"] = source or manifest["model"]  # of equal weights, the place where they lie now
    list_shards(directory, manifest, unlisted_shards(directory, manifest))
    listed = {shard["name"] for shard in manifest["shards"]}
    for path in (directory / SHARDS).iterdir():
        if path.name not in listed:  # none of its images could be read
            shutil.rmtree(path)
    StoredGallery(directory).renew_columns(read_columns(directory))
