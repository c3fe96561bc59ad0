"""Cuts the clip of a moment out of its film: its packets as they are where they can be, or encoded anew."""

import logging
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..data.moments import Moment, clock
from ..data.whole_files import replacing
from .faces import FaceCover
from .films import best_video, imported_av, open_film
from .sources import is_address

logger = logging.getLogger(__name__)

COPIED = {"h264", "hevc", "mpeg4", "av1", "vp9"}  # codecs that an .mp4 may hold, and players know
AROUND_S = 1.0  # shown before and after a moment
LONGEST_LEAD_S = 10.0  # that a copied clip may begin early, at the film's next key frame; else it is encoded
ENCODED = ("libx264", "mpeg4")  # the first that this ffmpeg has
LONGEST_CAMERA = 120  # bytes of its path in a file's name, of which systems take 255


@dataclass(frozen=True)
class Form:
    """How a clip is encoded.

    Attributes:
        kind: of file.
        settings, options: the codec's and the kind's own.
        frames_per_second: at most.
        longest_side: in pixels; None: as the film's.
    """

    codec: str
    kind: str = "mp4"
    settings: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    frames_per_second: int = 30
    longest_side: int | None = None


def clip_name(moment: Moment, covered: bool = False) -> str:
    """A file's name that says camera, time and visit, and that no other moment's clip has.

    >>> clip_name(Moment("hall/cam1.mp4", 72.4, 79.0, 3, (0, 0, 1, 1), 75.0))
    'hall_cam1.mp4-00-01-12.4-3-29bb3d4c.mp4'
    """
    camera = re.sub(r"[^\w.-]+", "_", moment.camera).encode()[-LONGEST_CAMERA:].decode(errors="ignore")
    own = zlib.crc32(repr((moment.camera, moment.film, moment.start_s, moment.end_s)).encode())
    faces = "-faces_covered" if covered else ""
    return f"{camera}-{clock(moment.start_s).replace(':', '-')}-{moment.track}-{own:08x}{faces}.mp4"


def cut_clip(moment: Moment, folder: Path, faces: FaceCover | None = None) -> Path:
    """Writes the clip of a moment into a folder, unless it is there; returns its file.

    Args:
        faces: what covers them; `None`: they are shown.

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
    path = folder / clip_name(moment, covered=faces is not None)
    if path.exists():
        return path
    if not Path(moment.film).exists():
        raise FileNotFoundError(f"the film {moment.film} of {moment.camera} is no more there")
    start_s, end_s = max(0.0, moment.start_s - AROUND_S), moment.end_s + AROUND_S
    with replacing(path) as unfinished:
        is_copied = faces is None and Path(moment.film).is_file()
        if not (is_copied and _copied(moment.film, unfinished, start_s, end_s)):
            codec = next((name for name in ENCODED if name in imported_av().codecs_available), ENCODED[0])
            encode_clip(moment, unfinished, start_s, end_s, Form(codec), faces)
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


def encode_clip(
    moment: Moment,
    path: Path,
    start_s: float,
    end_s: float,
    form: Form,
    faces: FaceCover | None = None,
) -> None:
    """Encodes frames of a moment's film anew; what it says beside them, such as a place, stays behind.

    Raises:
        OSError, ValueError: it cannot be read, or shows nothing of that time.
    """
    av = imported_av()
    assert moment.film is not None, "of a stream there is no clip"
    cover = None if faces is None else faces.over(moment, start_s, end_s)
    stream: Any = None
    next_s = start_s
    with (
        open_film(moment.film, from_s=start_s) as film,
        av.open(str(path), "w", format=form.kind, options=form.options) as target,
    ):
        for frame in film:
            if frame.time_s > end_s:
                break
            if frame.time_s < next_s:
                continue
            step_s = 1 / form.frames_per_second
            next_s = max(next_s, frame.time_s - step_s / 2) + step_s
            image = frame.image(form.longest_side)
            if cover is not None:
                image = cover(frame.time_s, image)
            if stream is None:
                stream = target.add_stream(form.codec, rate=form.frames_per_second, options=form.settings)
                stream.height, stream.width = (side // 2 * 2 for side in image.shape[:2])
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = Fraction(1, 1000)
            picture = av.VideoFrame.from_ndarray(image[: stream.height, : stream.width], format="rgb24")
            picture.pts, picture.time_base = round((frame.time_s - start_s) * 1000), Fraction(1, 1000)
            target.mux(stream.encode(picture))
        if stream is None:
            raise ValueError(f"{moment.film} shows nothing from {clock(start_s)} to {clock(end_s)}")
        target.mux(stream.encode())
