"""Cuts the clip of a moment out of its film: its packets as they are where they can be, or encoded anew."""

import logging
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..data.moments import Moment, clock
from ..data.whole_files import replacing
from .films import best_video, imported_av, open_film
from .sources import is_address

logger = logging.getLogger(__name__)

COPIED = {"h264", "hevc", "mpeg4", "av1", "vp9"}  # codecs that an .mp4 may hold, and players know
AROUND_S = 1.0  # shown before and after a moment
LONGEST_LEAD_S = 10.0  # that a copied clip may begin early, at the film's next key frame; else it is encoded
MOST_FRAMES_PER_SECOND = 30


def clip_name(moment: Moment) -> str:
    """A file's name that says camera, time and visit.

    >>> clip_name(Moment("hall/cam1.mp4", 72.4, 79.0, 3, (0, 0, 1, 1), 75.0))
    'hall_cam1.mp4-00-01-12.4-3.mp4'
    """
    camera = re.sub(r"[^\w.-]+", "_", moment.camera)
    return f"{camera}-{clock(moment.start_s).replace(':', '-')}-{moment.track}.mp4"


def cut_clip(moment: Moment, folder: Path) -> Path:
    """Writes the clip of a moment into a folder, unless it is there; returns its file.

    Raises:
        FileNotFoundError: the film is no more where it was.
        ValueError: it was a stream, which is not kept, or shows nothing of that time.
    """
    if moment.film is None or is_address(moment.film):
        known = moment.started, moment.ended
        start, end = (
            clock(seconds) if time is None else time.isoformat(" ", "seconds")
            for seconds, time in zip((moment.start_s, moment.end_s), known, strict=True)
        )
        raise ValueError(
            f"{moment.camera} was a stream, which is not kept: its recorder has {start} to {end}"
        )
    path = folder / clip_name(moment)
    if path.exists():
        return path
    if not Path(moment.film).exists():
        raise FileNotFoundError(f"the film {moment.film} of {moment.camera} is no more there")
    start_s, end_s = max(0.0, moment.start_s - AROUND_S), moment.end_s + AROUND_S
    with replacing(path) as unfinished:
        if not (Path(moment.film).is_file() and _copied(moment.film, unfinished, start_s, end_s)):
            _encoded(moment.film, unfinished, start_s, end_s)
    return path


def _copied(film: str, path: Path, start_s: float, end_s: float) -> bool:
    """Whether the packets of that time could be copied as they are."""
    av = imported_av()
    with av.open(film, metadata_errors="replace") as source:
        stream = best_video(source)
        if stream is None or stream.codec_context.name not in COPIED:
            return False
        base = float(stream.time_base)
        zero = (stream.start_time or 0) * base
        try:
            source.seek(int((start_s + zero) / base), stream=stream)
            with av.open(str(path), "w", format="mp4") as target:
                copy = target.add_stream_from_template(stream)
                first = None
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    time_s = packet.pts * base - zero
                    if first is None:
                        if not packet.is_keyframe:
                            continue
                        if not start_s - LONGEST_LEAD_S <= time_s <= start_s + 0.5:
                            return False
                        first = packet.dts
                    if time_s > end_s and packet.dts * base - zero > end_s:
                        break
                    packet.dts, packet.pts = packet.dts - first, packet.pts - first
                    packet.stream = copy
                    target.mux(packet)
        except (av.error.FFmpegError, ValueError) as error:
            logger.debug("%s: not copied (%s)", film, error)
            return False
    return first is not None


def _encoded(film: str, path: Path, start_s: float, end_s: float) -> None:
    """The same from decoded frames, as H.264, or where this ffmpeg has it not as MPEG-4."""
    av = imported_av()
    stream: Any = None
    with open_film(film, from_s=start_s) as opened, av.open(str(path), "w", format="mp4") as target:
        last = -math.inf
        for frame in _until(opened, end_s):
            if frame.time_s - last < 0.9 / MOST_FRAMES_PER_SECOND:
                continue
            last = frame.time_s
            if stream is None:
                stream = _new_stream(target)
                stream.width, stream.height = frame.width // 2 * 2, frame.height // 2 * 2
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = Fraction(1, 1000)
            image = frame.image()[: stream.height, : stream.width]
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = round((frame.time_s - start_s) * 1000), Fraction(1, 1000)
            target.mux(stream.encode(picture))
        if stream is None:
            raise ValueError(f"{film} shows nothing from {clock(start_s)} to {clock(end_s)}")
        target.mux(stream.encode())


def _new_stream(target: Any) -> Any:
    av = imported_av()
    try:
        return target.add_stream("libx264", rate=MOST_FRAMES_PER_SECOND)
    except (av.error.FFmpegError, ValueError):
        return target.add_stream("mpeg4", rate=MOST_FRAMES_PER_SECOND)


def _until(film: Any, end_s: float) -> Iterator[Any]:
    for frame in film:
        if frame.time_s > end_s:
            return
        yield frame
