"""Opens films, streams and sequences of images alike, and gives their frames with the film's own times.

    with open_film("cam1.mp4") as film:
        for frame in film:
            frame.time_s, frame.image()

What is wrong with a film's clock or content becomes a named [`Gap`] in `film.gaps`, and the film goes on.
"""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..data.moments import clock
from .sources import is_address

if TYPE_CHECKING:
    import av

logger = logging.getLogger(__name__)

LONGEST_SILENCE_S = 2.0  # between two frames before it is called a gap; a slow film's own pace is no gap
WRONG_PACKETS = 1000  # in a row, after which a film is given up: it holds nothing else
A_NAMES_TIME = re.compile(
    r"(?<!\d)(?P<date>(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d)[-_.T ]{0,3}"
    r"(?P<clock>[0-2]\d[-_.:h]?[0-5]\d[-_.:m]?[0-6]\d)(?:[-_.,s](?P<part>\d{1,6}))?(?P<zone>Z)?(?!\d)"
)
A_NAMES_SECONDS = re.compile(r"(?<!\d)(1\d{9})(?:[._](\d{1,6})|(\d{3}))?(?!\d)")  # since 1970, to 2033


@dataclass(frozen=True)
class Gap:
    """A time of which a film shows nothing, and why."""

    start_s: float
    end_s: float
    reason: str

    def __str__(self) -> str:
        return f"{clock(self.start_s)} to {clock(self.end_s)}: {self.reason}"

    def to_json(self) -> dict[str, Any]:
        return {"start_s": round(self.start_s, 3), "end_s": round(self.end_s, 3), "reason": self.reason}


class Frame(Protocol):
    """One image of a film.

    Attributes:
        time_s: seconds since the film's beginning; each frame's is greater than that of the one before.
        number: from 1; reckoned by the film's rate where it is not read from its beginning.
        width, height: pixels, upright.
    """

    @property
    def time_s(self) -> float: ...
    @property
    def number(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...

    def image(self, longest: int | None = None) -> np.ndarray:
        """(height, width, 3) uint8 RGB, upright; no side longer than `longest`, which is cheaper."""
        ...


class Film(AbstractContextManager["Film"]):
    """The frames of one camera, in order; to be gone through once.

    Attributes:
        name: what errors call it.
        started_at: the wall clock's time at `time_s` 0, with its zone; None where nothing says it.
        duration_s: as the file says; None of a stream and of a file that does not.
        begins_with: the name of the first of a sequence of images, at `time_s` 0; None of other films.
        gaps: that were met so far.
        is_live: a stream, which has no end and cannot be gone through again.
    """

    def __init__(self, name: str, started_at: datetime | None = None, duration_s: float | None = None):
        self.name = name
        self.started_at = started_at
        self.duration_s = duration_s
        self.begins_with: str | None = None
        self.gaps: list[Gap] = []
        self.is_live = False

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def __exit__(self, *_: Any) -> None:
        pass

    def _note(self, start_s: float, end_s: float, reason: str) -> None:
        gap = Gap(start_s, end_s, reason)
        self.gaps.append(gap)
        logger.warning("%s, %s", self.name, gap)


def open_film(
    source: str | Path,
    *,
    started_at: datetime | None = None,
    from_s: float = 0.0,
    timeout_s: float = 20.0,
) -> Film:
    """Opens a film's file, a folder of images with times in their names, or a camera's address.

    Args:
        source: a path; or an address: rtsp://..., http://..., any other that ffmpeg knows, or webcam:0.
        started_at: the wall clock at the film's beginning, in place of what its metadata say.
        from_s: the time of the first frame wanted.
        timeout_s: how long an address may be silent.

    Raises:
        FileNotFoundError, PermissionError: it is not there, or may not be read.
        ValueError: it holds no video, or none that can be read; the message says what it is.
        TimeoutError, ConnectionError: an address does not answer.
        ImportError: PyAV is missing.
    """
    text = str(source)
    if not is_address(text):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such film")
        if path.is_dir():
            return _ImageSequence(path, started_at, from_s)
    return _DecodedFilm(text, started_at, from_s, timeout_s)


@dataclass(frozen=True)
class _DecodedFrame:
    time_s: float
    number: int
    width: int
    height: int
    decoded: "av.VideoFrame"
    quarter_turns: int

    def image(self, longest: int | None = None) -> np.ndarray:
        if longest is None or longest >= max(self.width, self.height):
            return self._whole
        return self._converted(longest / max(self.width, self.height))

    @cached_property
    def _whole(self) -> np.ndarray:  # of which several people are cut
        return self._converted(1.0)

    def _converted(self, scale: float) -> np.ndarray:
        width, height = (max(1, round(side * scale)) for side in (self.decoded.width, self.decoded.height))
        image = self.decoded.to_ndarray(format="rgb24", interpolation="AREA", width=width, height=height)
        return np.ascontiguousarray(np.rot90(image, self.quarter_turns)) if self.quarter_turns else image


class _DecodedFilm(Film):
    """What PyAV, that is ffmpeg, decodes."""

    def __init__(self, source: str, started_at: datetime | None, from_s: float, timeout_s: float):
        super().__init__(_without_password(source))
        self.from_s = from_s
        self.is_live = is_address(source)
        self._av = imported_av()
        self._container = self._opened(source, timeout_s)
        try:
            self._stream = self._best_stream()
        except BaseException:
            self._container.close()
            raise
        self._stream.thread_type = "AUTO"
        self.started_at = started_at or _creation_time(self._container, self._stream)
        if self._stream.duration is not None and self._stream.time_base is not None:
            self.duration_s = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration is not None:
            self.duration_s = self._container.duration / self._av.time_base
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._step_s = 1 / float(rate) if rate else 0.04

    def __exit__(self, *_: Any) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        base = float(self._stream.time_base or 0)
        zero = None if self._stream.start_time is None else self._stream.start_time * base
        last: float | None = None
        number = 0
        shift = 0.0  # what is added since the clock went back
        if self.from_s and not self.is_live:
            with suppress(self._av.error.FFmpegError):  # a film without an index is read from its beginning
                self._container.seek(int((self.from_s + (zero or 0.0)) / base), stream=self._stream)
        for decoded in self._decoded():
            given = None if decoded.pts is None else decoded.pts * base
            if zero is None and given is not None:
                zero = given
            if given is None:
                time_s = 0.0 if last is None else last + self._step_s
            else:
                time_s = given - (zero or 0.0) + shift
            if last is not None and time_s <= last:
                if time_s > last - 1.5 * self._step_s:  # a doubled frame, of a clock too coarse to tell
                    continue
                self._note(
                    last,
                    last + self._step_s,
                    f"the film's clock goes back by {last - time_s:.1f} s; times are counted on from here",
                )
                shift += last + self._step_s - time_s
                time_s = last + self._step_s
            elif last is not None and time_s - last > max(LONGEST_SILENCE_S, 3 * self._step_s):
                self._note(last, time_s, f"no frames for {time_s - last:.1f} s")
            last = time_s
            if time_s < self.from_s - 1e-6:
                continue
            turns = round(decoded.rotation / 90) % 4
            width, height = decoded.width, decoded.height
            if turns % 2:
                width, height = height, width
            number = round(time_s / self._step_s) + 1 if self.from_s else number + 1
            yield _DecodedFrame(time_s, number, width, height, decoded, turns)
        if last is None:
            raise ValueError(f"{self.name}: its video holds no frame that can be read")
        missing = (self.duration_s or 0.0) - last - self._step_s
        if not self.is_live and missing > max(LONGEST_SILENCE_S, 3 * self._step_s):
            self._note(
                last, last + missing, f"the file ends {missing:.1f} s before its own length: it was cut off"
            )

    def _decoded(self) -> Iterator["av.VideoFrame"]:
        """The frames in order; what cannot be decoded is passed over, and its time becomes a gap above."""
        errors = self._av.error
        wrong = 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                return
            except (TimeoutError, errors.TimeoutError, errors.ExitError) as error:
                raise TimeoutError(f"{self.name}: it does not answer any more") from error
            except errors.FFmpegError as error:
                wrong += 1
                if isinstance(error, errors.EOFError):
                    return
                if wrong == 1:
                    logger.warning("%s: damaged (%s); it is read on", self.name, error)
                if wrong > WRONG_PACKETS or not isinstance(error, errors.InvalidDataError):
                    if self.is_live:
                        raise ConnectionError(f"{self.name}: {error}") from error
                    return
                continue
            wrong = 0
            for frame in frames:
                if frame.width and frame.height:
                    yield frame  # type: ignore[misc]

    def _opened(self, source: str, timeout_s: float) -> Any:
        errors = self._av.error
        options, form = {}, None
        if source.lower().startswith("rtsp"):
            options = {"rtsp_transport": "tcp"}  # by UDP, frames are lost where a network is busy
        if source.lower().startswith("webcam:"):
            number = source.partition(":")[2] or "0"
            source, form = (f"/dev/video{number}" if number.isdigit() else number), "v4l2"
        began = time.monotonic()
        try:
            return self._av.open(
                source,
                format=form,
                options=options,
                timeout=(timeout_s, timeout_s) if self.is_live else None,
                metadata_errors="replace",
            )
        except PermissionError as error:
            raise PermissionError(f"{self.name} may not be read by this user") from error
        except (TimeoutError, errors.TimeoutError, errors.ExitError) as error:
            raise TimeoutError(f"{self.name}: it does not answer within {timeout_s:g} s") from error
        except (errors.FFmpegError, OSError) as error:
            if self.is_live:
                if time.monotonic() - began > 0.9 * timeout_s:  # what ffmpeg says then differs by protocol
                    raise TimeoutError(f"{self.name}: it does not answer within {timeout_s:g} s") from error
                raise ConnectionError(f"{self.name} cannot be reached: {error.strerror or error}") from error
            if not isinstance(error, errors.InvalidDataError):
                raise ValueError(f"{self.name} cannot be read: {error.strerror or error}") from error
            raise ValueError(
                f"{self.name} is no film that can be read: it was cut off, is still being written, or is "
                "something else"
            ) from error

    def _best_stream(self) -> Any:
        stream = best_video(self._container)
        if stream is None:
            if any(other.type == "video" for other in self._container.streams):
                raise ValueError(
                    f"{self.name}: its video is in a codec that ffmpeg here has not; convert it, for "
                    "instance to H.264"
                )
            kinds = sorted({other.type for other in self._container.streams})
            if not kinds:
                raise ValueError(f"{self.name} is no film that can be read: it was cut off at its beginning")
            raise ValueError(f"{self.name}: no video in it, only {', '.join(kinds)}")
        return stream


def best_video(container: Any) -> Any:
    """The video stream of a container with most pixels, no picture of a cover; None where there is none."""
    cover = imported_av().stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    streams = [stream for stream in streams if not stream.disposition & cover] or streams
    return max(streams, key=lambda stream: stream.width * stream.height, default=None)


@dataclass(frozen=True)
class _ImageFrame:
    time_s: float
    number: int
    width: int
    height: int
    pixels: Any  # PIL.Image.Image, upright RGB

    def image(self, longest: int | None = None) -> np.ndarray:
        if longest is None or longest >= max(self.width, self.height):
            return np.asarray(self.pixels)
        small = self.pixels.copy()
        small.thumbnail((longest, longest))
        return np.asarray(small)


class _ImageSequence(Film):
    """A folder of images whose names say when each was taken."""

    def __init__(self, folder: Path, started_at: datetime | None, from_s: float):
        super().__init__(str(folder))
        from ..data.image_files import image_suffixes, load_file  # which import the decoder

        self.load = load_file
        suffixes = image_suffixes()
        files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in suffixes]
        if not files:
            raise ValueError(f"{folder}: neither a film nor an image is in it")
        times = []
        for file in files:
            taken = time_in_name(file.name)
            if taken is None:
                raise ValueError(
                    f"{file}: its name has no time, such as 2026-11-26_12-30-05.250.jpg or 1795696205.jpg; "
                    "without times, search the folder as images"
                )
            times.append(taken)
        order = sorted(range(len(files)), key=times.__getitem__)
        first = times[order[0]]
        self.started_at = started_at or first
        self.begins_with = files[order[0]].name
        self.from_s = from_s
        self.files = [(files[place], (times[place] - first).total_seconds()) for place in order]
        self.duration_s = self.files[-1][1]
        steps = [after[1] - before[1] for before, after in zip(self.files, self.files[1:], strict=False)]
        self._step_s = float(np.median(steps)) if steps else 1.0

    def __iter__(self) -> Iterator[Frame]:
        last: float | None = None
        for number, (file, time_s) in enumerate(self.files, start=1):
            if last is not None and time_s <= last:
                continue
            if time_s < self.from_s:
                last = time_s
                continue
            try:
                image = self.load(file)
            except (OSError, ValueError) as error:
                logger.warning("left out %s: %s", file, error)
                continue
            if last is not None and time_s - last > max(LONGEST_SILENCE_S, 3 * self._step_s):
                self._note(last, time_s, f"no images for {time_s - last:.1f} s")
            last = time_s
            yield _ImageFrame(time_s, number, image.width, image.height, image)
        if last is None:
            raise ValueError(f"{self.name}: none of its images can be read")


def time_in_name(name: str) -> datetime | None:
    """The time that a file's name says, of the machine's zone where it names none; None where there is none.

    >>> time_in_name("cam1_2026-11-26_12-30-05.250.jpg").isoformat()[:23]
    '2026-11-26T12:30:05.250'
    """
    if found := A_NAMES_TIME.search(name):
        digits = re.sub(r"\D", "", found["date"] + found["clock"])
        with suppress(ValueError):
            taken = datetime.strptime(digits, "%Y%m%d%H%M%S")
            taken += timedelta(seconds=float(f"0.{found['part'] or 0}"))
            return taken.replace(tzinfo=UTC) if found["zone"] else taken.astimezone()
    if found := A_NAMES_SECONDS.search(name):
        return datetime.fromtimestamp(float(f"{found[1]}.{found[2] or found[3] or 0}"), UTC).astimezone()
    return None


def read_clock(text: str) -> float:
    """The seconds that "72.4", "1:12.4" or "00:01:12.4" says; ValueError for anything else."""
    parts = text.strip().split(":")
    if len(parts) > 3 or not all(re.fullmatch(r"\d+(\.\d+)?", part) for part in parts):
        raise ValueError(f"{text!r} is no time of a film, such as 72.4 or 00:01:12.4")
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + float(part)
    return seconds


def imported_av() -> Any:
    """PyAV.

    Raises:
        ImportError: with the way out.
    """
    try:
        import av
        import av.logging
    except ImportError as error:
        raise ImportError(f"films need the extra `footage`: pip install -e '.[footage]' ({error})") from error
    # What ffmpeg complains of is said here, once. At any level but None a decoder's thread waits for Python's
    # lock to say it, and who closes a film early, with that lock, waits for the thread: for ever.
    av.logging.set_level(None)
    return av


def _creation_time(container: Any, stream: Any) -> datetime | None:
    for metadata in (stream.metadata, container.metadata):
        with suppress(KeyError, ValueError):
            began = datetime.fromisoformat(metadata["creation_time"].replace("Z", "+00:00"))
            if began.year > 1970:  # what cameras without a clock write
                return began if began.tzinfo else began.astimezone()
    return None


def _without_password(source: str) -> str:
    return re.sub(r"(?<=://)[^/@]*@", "", source) if is_address(source) else os.fspath(source)
