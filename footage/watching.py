"""Watches a camera's stream, or a folder into which a recorder writes, and keeps a gallery up to date.

A stream that drops is opened again. Each time it is a record of its own, CAMERA/20261126T080000 by the time
of opening, so that its times are those of one connection and `--camera CAMERA` names them all.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.whole_files import held_alone
from ..models.interface import RetrievalModel, RetrievalProcessor
from ..search.manifest import FOOTAGE, GalleryError
from .following import Appearance
from .intake import Encoded, appearance_of, build_footage, encode_visits, look_through
from .records import FilmRecord, records_of
from .rules import FootageRules
from .sources import Source, find_films, is_address

logger = logging.getLogger(__name__)

A_RECORD_S = 3600.0  # of a stream, after which another is begun: none grows without end
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0  # before a stream that dropped is opened again


def watch(
    place: str,
    gallery: Path,
    model: RetrievalModel,
    processor: RetrievalProcessor,
    rules: FootageRules,
    *,
    camera: str | None = None,
    every_s: float = 60.0,
    stop: threading.Event | None = None,
    first_wait_s: float = FIRST_WAIT_S,
    encoded: Encoded | None = None,
) -> None:
    """Goes on until `stop` is set, or it is interrupted; what was found by then is in the gallery.

    A stream cannot be seen again: Ctrl-C, SIGTERM and SIGHUP end visits that are open, and keep them. Films
    can, so that a folder may be left at any moment.

    Args:
        place: a camera's address, or a folder of films that grows; a film, at an address too, which is
            looked through once.
        every_s: between two times that what was found is encoded, or that the folder is looked at.
        first_wait_s: before a stream is opened again; longer the more often in a row that fails.
        encoded: called each time that visits may have come into the gallery, with it and their records.

    Raises:
        AlreadyHeldError: another process watches this camera for this gallery.
    """
    stop = stop or threading.Event()
    if not is_address(place) and not Path(place).is_dir():
        build_footage(find_films(place, camera), gallery, model, processor, rules, encoded=encoded)
        return
    if not is_address(place):
        said: set[str] = set()
        while not stop.is_set():
            try:
                sources = find_films(place, camera)
                build_footage(sources, gallery, model, processor, rules, said, encoded)
            except (ValueError, OSError, GalleryError) as error:  # nothing there yet, or another builds
                if str(error) not in said:
                    logger.warning("%s; it is looked at again every %g s", error, every_s)
                    said.add(str(error))
            stop.wait(every_s)
        return
    (source,) = find_films(place, camera)
    (gallery / FOOTAGE / source.camera).mkdir(parents=True, exist_ok=True)
    with held_alone(gallery / FOOTAGE / source.camera / "watch.lock"), _set_by_signals(stop):
        _watch_stream(source, gallery, model, processor, rules, every_s, stop, first_wait_s, encoded)


def _watch_stream(
    source: Source,
    gallery: Path,
    model: RetrievalModel,
    processor: RetrievalProcessor,
    rules: FootageRules,
    every_s: float,
    stop: threading.Event,
    first_wait_s: float,
    encoded: Encoded | None,
) -> None:
    def encode(records: Sequence[FilmRecord]) -> None:
        opened = encode_visits(gallery, records, model, processor)
        if encoded is not None:
            encoded(opened, records)

    if earlier := _earlier_records(gallery, source.camera):  # of which a kill may have left some undone
        encode(earlier)
    encoding = _Encoding(lambda record: encode([record]), every_s)
    appearance = encoding.one_at_a_time(appearance_of(model, processor))
    wait_s = first_wait_s
    while not stop.is_set():
        now = datetime.now().astimezone()
        own = Source(f"{source.camera}/{now:%Y%m%dT%H%M%S}", source.film)
        began = time.monotonic()
        record = None
        try:
            record = look_through(
                own,
                gallery,
                replace(rules, started_at=rules.started_at or now.isoformat()),
                appearance,
                found=encoding.when_due,
                enough=lambda begin=began: stop.is_set() or time.monotonic() - begin > A_RECORD_S,
            )
            if record.is_whole_film:
                logger.info("%s: a film, not a camera: it was looked through once", source.camera)
                return
            logger.info("%s: its stream has ended, or an hour is full; it is opened again", source.camera)
        except (OSError, ValueError) as error:
            logger.warning("%s; it is opened again in %g s", error, wait_s)
        finally:
            record = record or FilmRecord.read(gallery / FOOTAGE / own.camera, own.camera)
            if record.is_blank:
                record.remove()
            elif record.about:
                encoding.finish(record)
        wait_s = (
            first_wait_s if time.monotonic() - began > LONGEST_WAIT_S else min(2 * wait_s, LONGEST_WAIT_S)
        )
        stop.wait(wait_s)


@contextmanager
def _set_by_signals(stop: threading.Event) -> Iterator[None]:
    """Sets `stop` where the process is asked to end; a second Ctrl-C ends it at once.

    What the process was told to ignore, as by `nohup`, it goes on ignoring.
    """

    def note(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        threading.Thread(target=stop.set).start()  # which here would wait for ever for a `wait` it interrupts

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other gets signals
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _earlier_records(gallery: Path, camera: str) -> list[FilmRecord]:
    """Those of a camera's connections before this one."""
    return [record for record in records_of(gallery) if record.camera.startswith(f"{camera}/")]


class _Encoding:
    """Encodes beside the stream, whose frames do not wait."""

    def __init__(self, encode: Callable[[FilmRecord], object], every_s: float):
        self.encode = encode
        self.every_s = every_s
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="encoding")
        self.running: Future | None = None
        self.encoded_s = time.monotonic()
        self.model = threading.Lock()

    def one_at_a_time(self, appearance: Appearance) -> Appearance:
        def looks(images: Sequence[Image.Image]) -> np.ndarray:
            with self.model:
                return appearance(images)

        return looks

    def when_due(self, record: FilmRecord) -> None:
        if self.running is not None and not self.running.done():
            return
        if time.monotonic() - self.encoded_s >= self.every_s:
            self.encoded_s = time.monotonic()
            self.running = self.thread.submit(self._encode, record)

    def finish(self, record: FilmRecord) -> None:
        if self.running is not None:
            self.running.result()
        self._encode(record)

    def _encode(self, record: FilmRecord) -> None:
        try:
            with self.model:  # by the file: of what it says, another process may have forgotten some
                self.encode(FilmRecord.read(record.folder, record.camera))
        except (
            GalleryError,
            OSError,
        ) as error:  # another writes to it, a full disk: the record has it
            logger.warning("%s; it is encoded later", error)
