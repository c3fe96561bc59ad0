"""From films to a gallery of visits: looks through what is new, and encodes the people who were found."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..data.image_files import load_inside
from ..data.image_sources import SourceImage, file_state
from ..models.fingerprints import image_fingerprint, model_fingerprint
from ..models.interface import RetrievalModel, RetrievalProcessor
from ..search.folder_gallery import place_of_gallery
from ..search.gallery import Gallery
from ..search.manifest import FOOTAGE, MANIFEST, builder_lock
from .detectors import WholeFrames, detector_of
from .films import Film, open_film
from .following import Appearance, Follower, Scenes
from .records import FilmRecord
from .rules import FootageRules
from .sources import Source, find_films, is_address, plain_camera

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

WARM_UP_S = 20.0  # of a film that is gone on with: the background is learnt before anybody is looked for
MARKED_EVERY_S = 60.0  # of quiet, in a record
THUMBNAIL_SIZE = 384
BLOCKS, BLOCK = 16, 2**17  # and their bytes, by which a film's content is told
Encoded = Callable[[Gallery, Sequence[FilmRecord]], None]  # what is told of visits that are in a gallery now


def look_through(
    source: Source,
    gallery: Path,
    rules: FootageRules,
    appearance: Appearance | None = None,
    *,
    found: Callable[[FilmRecord], None] | None = None,
    enough: Callable[[], bool] | None = None,
) -> FilmRecord:
    """Finds the people of a film that were not found yet, and keeps them beside the gallery.

    Of a film that was looked through nothing is done; one that has grown is gone on with; a kill at any time
    loses nothing that was finished.

    Args:
        found: called when visits were found.
        enough: whether to stop, asked at each frame, as of a stream, which has no end.

    Raises:
        ValueError: it is no film, another film of this camera is in the gallery, or the settings differ.
        TimeoutError, ConnectionError, OSError: it cannot be read any more; what was found until then is kept.
    """
    record = FilmRecord.read(gallery / FOOTAGE / source.camera, source.camera)
    state = _state_of(source.film)
    if record.about and not _is_to_be_read(record, source, rules, state):
        return record
    content = content_checksum(source.film)  # before it is read: what is written meanwhile makes it another
    detector = detector_of(rules.detector, rules.detect_every)
    looks_s = 1 / rules.frames_per_second if detector.by_motion else rules.detect_every
    if rules.detector.startswith("boxes:"):
        looks_s = 1 / rules.frames_per_second
    begin_s = max(0.0, record.quiet_s - WARM_UP_S)
    with open_film(source.film, started_at=rules.start, from_s=begin_s) as film:
        if record.about.get("begins_with") not in (None, film.begins_with):
            raise _another(source)
        if record.end is not None and state is not None:
            record.reopen()
        record.begin(_about(film, source, rules))
        people: Follower | Scenes = Scenes()
        if not isinstance(detector, WholeFrames):
            people = Follower(
                1 / looks_s,
                appearance,
                must_move=detector.by_motion,
                views=rules.views,
                margin=rules.margin,
            )
        noted, marked_s, last_s = 0, record.quiet_s, 0.0
        try:
            for time_s, frame in frames_at(film, rules.frames_per_second):
                people_seen = detector.find(frame)
                for gap in film.gaps[noted:]:
                    if round(gap.end_s, 3) > record.quiet_s:  # as the record has it
                        record.note(gap)
                noted, last_s = len(film.gaps), time_s
                if people_seen is None or time_s < record.quiet_s:
                    continue
                visits = people.update(frame, *people_seen)
                record.add(visits)
                if visits and found is not None:
                    found(record)
                if enough is not None and enough():
                    break
                settled_s = people.settled_s(time_s)
                if settled_s is not None and (visits or settled_s - marked_s > MARKED_EVERY_S):
                    record.mark_quiet(settled_s)
                    marked_s = settled_s
        except (OSError, ValueError, KeyboardInterrupt):
            if film.is_live:  # which cannot be read again
                record.add(people.finish())
            raise
        record.add(people.finish())
        for gap in film.gaps[noted:]:
            record.note(gap)
        record.mark_end(last_s, state, content)
    return record


def encode_visits(
    gallery: Path,
    records: Sequence[FilmRecord],
    model: RetrievalModel,
    processor: RetrievalProcessor,
    accelerator: "Accelerator | None" = None,
) -> Gallery:
    """Encodes what was found into the gallery, and takes out of it what is no more in the records."""
    if (gallery / MANIFEST).exists():
        stored = Gallery.open(gallery)
        wanted = {name for record in records for name, _, _ in record.moments()}
        cameras = {record.camera for record in records}
        columns = stored.stored.columns
        rows = columns.of_cameras(lambda name: plain_camera(name) in cameras)
        gone = [name for name in columns.ids(rows) if name not in wanted]
        if gone:
            stored.delete(gone)
    images = []
    root = os.path.realpath(gallery / FOOTAGE)
    for record in records:
        for name, view, moment in record.moments():
            path = f"{record.camera}/{view.name}"
            images.append(SourceImage(name, partial(load_inside, root, path), root, path, moment=moment))
    settings: dict[str, Any] = {"tokens": "float16", "thumbnail_size": THUMBNAIL_SIZE}
    if (gallery / MANIFEST).exists():
        own = Gallery.open(gallery).stored.settings
        settings = {"tokens": own.tokens, "thumbnail_size": own.thumbnail_size}
    return Gallery.build(
        model, processor, images, gallery, on_clash="skip", accelerator=accelerator, **settings
    )


def build_footage(
    sources: Sequence[Source],
    gallery: Path,
    model: RetrievalModel,
    processor: RetrievalProcessor,
    rules: FootageRules,
    said: set[str] | None = None,
    encoded: Encoded | None = None,
) -> Gallery:
    """Looks through the films that are new, and opens the gallery of all visits.

    A film that cannot be read is named, and the others go on; where there is but one, its error is raised.

    Args:
        said: what was warned of before, which is not said again; grows.
        encoded: called with the gallery and the films' records in the end.
    """
    said = set() if said is None else said
    appearance = appearance_of(model, processor)
    with builder_lock(gallery):
        records = []
        for source in tqdm(sources, desc="films", unit="film", leave=False, disable=None):
            try:
                records.append(look_through(source, gallery, rules, appearance))
            except (OSError, ValueError) as error:
                if len(sources) == 1:
                    raise
                if (message := f"left out {source.camera}: {error}") not in said:
                    logger.warning(message)
                    said.add(message)
    if not records:
        raise ValueError(f"none of the {len(sources)} films can be read; the lines above say why")
    opened = encode_visits(gallery, records, model, processor)
    if encoded is not None:
        encoded(opened, records)
    return opened


def open_footage(
    place: str | Path,
    model: RetrievalModel,
    processor: RetrievalProcessor,
    *,
    rules: FootageRules | None = None,
    **opened_as: Any,
) -> Gallery:
    """The gallery of a film or of a folder of films, kept beside it and brought up to date; as `open_folder`.

    Raises:
        ValueError: nobody was found, or it is a stream, which has no end.
    """
    if is_address(place):
        raise ValueError(f"{place} has no end: `tpas watch` keeps a gallery of it, which is searched")
    name = f"{model_fingerprint(model)}-{image_fingerprint(model, processor)}"
    path = place_of_gallery(Path(place)) / name
    gallery = build_footage(find_films(place), path, model, processor, rules or FootageRules())
    if not len(gallery):
        raise ValueError(f"nobody was found in {place} by {(rules or FootageRules()).detector}")
    return Gallery.open(path, model, processor, **opened_as)


def appearance_of(model: RetrievalModel, processor: RetrievalProcessor) -> Appearance:
    """The model's own embeddings, by which people are told apart."""
    import torch

    from ..engine.encoding import collated, encode_images
    from ..engine.fastest import encoder_for

    encoder = encoder_for(model.eval())

    def looks(images: Sequence[Any]) -> Any:
        with torch.inference_mode():
            inputs = collated([dict(processor(images=[image])) for image in images])
            return encode_images(encoder, inputs, None)[0].numpy()

    return looks


def _is_to_be_read(record: FilmRecord, source: Source, rules: FootageRules, state: list[int] | None) -> bool:
    there, own = record.about.get("settings"), rules.settings
    if there != own:
        other = {name: value for name, value in (there or {}).items() if own.get(name) != value}
        raise ValueError(
            f"{source.camera} was looked through with {other}, and "
            f"{ {name: own[name] for name in other} } was asked for: use the same, or another gallery"
        )
    if state is None:
        return True
    before = None if record.end is None else record.end["state"]
    if before is not None and before[0] == state[0]:
        if not _is_as_before(record, source, state):
            raise _another(source)
        return False
    if record.about.get("film") != source.film:
        raise ValueError(
            f"{source.camera} is {record.about.get('film')} in the gallery, not looked through to its end, "
            f"and {source.film} is another film: --camera gives it another name. If it was moved: remove "
            f"{record.folder}, and it is looked through again"
        )
    if record.end is None:
        return True
    if before is None or state[0] < before[0]:
        raise _another(source)
    logger.info("%s has grown: it is gone on with", source.camera)
    return True


def _about(film: Film, source: Source, rules: FootageRules) -> dict[str, Any]:
    return {
        "film": film.name if film.is_live else source.film,
        "started_at": None if film.started_at is None else film.started_at.isoformat(),
        "is_live": film.is_live,
        "duration_s": film.duration_s,
        "begins_with": film.begins_with,
        "settings": rules.settings,
    }


def _another(source: Source) -> ValueError:
    return ValueError(
        f"{source.film} is another film than the one of this name in the gallery: --camera gives it another "
        "name"
    )


def _state_of(film: str) -> list[int] | None:
    if is_address(film):
        return None
    path = Path(film)
    if path.is_dir():
        return [sum(1 for _ in path.iterdir()), path.stat().st_mtime_ns, 0, 0]
    return file_state(path)


def _is_as_before(record: FilmRecord, source: Source, state: list[int]) -> bool:
    """Whether a film of the same length is the one that was looked through: moved, copied or touched."""
    assert record.end is not None, "was looked at"
    known = record.end.get("content")
    if known is None or record.end["state"][1] == state[1]:
        return True
    if known != content_checksum(source.film):
        return False
    record.mark_end(record.end["end_s"], state, known)  # lest it be read at each look
    return True


def content_checksum(film: str) -> str | None:
    """What stands for a film's content, without reading all of it: blocks from its first byte to its last.

    Of a folder the names and sizes of its files. None of an address, and of what is no file.
    """
    path, checksum = Path(film), hashlib.blake2b(digest_size=16)
    if is_address(film) or not (path.is_dir() or path.is_file()):
        return None
    if path.is_dir():
        with os.scandir(path) as entries:
            files = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
        checksum.update(json.dumps(files).encode())
        return checksum.hexdigest()
    with path.open("rb") as stream:
        last = max(0, os.fstat(stream.fileno()).st_size - BLOCK)
        for number in range(BLOCKS):
            stream.seek(last * number // (BLOCKS - 1))
            checksum.update(stream.read(BLOCK))
    return checksum.hexdigest()


def frames_at(film: Film, frames_per_second: float) -> Iterator[tuple[float, Any]]:
    """The film's frames, no more of them in a second; with a bar on a terminal."""
    step_s = 1 / frames_per_second
    next_s = -1.0
    total = None if film.duration_s is None else round(film.duration_s)
    with tqdm(total=total, desc=film.name, unit="s", leave=False, disable=None) as bar:
        for frame in film:
            if frame.time_s < next_s - 0.25 * step_s:
                continue
            next_s = max(next_s + step_s, frame.time_s + 0.5 * step_s)
            bar.update(max(0, int(frame.time_s) - bar.n))
            yield frame.time_s, frame
