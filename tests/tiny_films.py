"""Films of a few pixels, written by PyAV."""

import json
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

Box = tuple[int, int, int, int]
COLOURS = [(220, 30, 30), (30, 30, 220), (30, 200, 30)]
TRUTH = [(1.0, 4.0), (8.0, 12.0), (16.0, 20.0)]


def write_film(
    path: Path,
    times: Sequence[float],
    images: Iterable[np.ndarray] | None = None,
    *,
    size: tuple[int, int] = (64, 48),
    metadata: dict[str, str] | None = None,
    more_streams: Sequence[tuple[int, int]] = (),
) -> Path:
    """A film with frames at these times; grey, or with these images (height, width, 3)."""
    images = [np.full((size[1], size[0], 3), 90, np.uint8)] * len(times) if images is None else images
    container = "mpegts" if path.suffix == ".ts" else path.suffix.lstrip(".").replace("mkv", "matroska")
    with av.open(str(path), "w", format=container) as target:
        target.metadata.update(metadata or {})
        streams = []
        for width, height in (size, *more_streams):
            stream = target.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000)
            streams.append(stream)
        for time, image in zip(times, images, strict=True):
            for stream in streams:
                resized = (
                    np.resize(image, (stream.height, stream.width, 3)) if stream is not streams[0] else image
                )
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(resized), format="rgb24")
                frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
                target.mux(stream.encode(frame))
        for stream in streams:
            target.mux(stream.encode())
    return path


def walkers(
    times: Sequence[float],
    boxes: Sequence[dict[int, Box]],
    colours: Sequence[tuple[int, int, int]],
    size=(160, 120),
) -> list[np.ndarray]:
    """Images with coloured boxes: for each time left, top, right and bottom of each walker, nearest last."""
    noise = np.random.default_rng(0)
    texture = noise.integers(80, 120, (size[1], size[0], 3))
    images = []
    for at_that_time in boxes[: len(times)]:
        image = texture + noise.integers(-3, 4, texture.shape)
        for walker, (left, top, right, bottom) in at_that_time.items():
            image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = colours[walker]
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


def write_boxes(path: Path, seconds: int = 24) -> list[dict[str, Any]]:
    """Where three walkers are, one after the other, as JSON Lines of another detector."""
    rows = []
    for number in range(seconds * 10):
        time_s = number / 10
        for walker, (start_s, end_s) in enumerate(TRUTH):
            if start_s <= time_s <= end_s:
                left = int(20 + 25 * (time_s - start_s))
                rows.append({"time_s": time_s, "box": [left, 30, 16, 50], "walker": walker})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def write_walk(path: Path, boxes: list[dict[str, Any]], seconds: int = 24, **settings: Any) -> Path:
    """The film of what `write_boxes` wrote."""
    times = [number / 10 for number in range(seconds * 10)]
    at: list[dict[int, Box]] = [{} for _ in times]
    for row in boxes:
        left, top, width, height = row["box"]
        if row["time_s"] < seconds - 0.05:
            at[round(row["time_s"] * 10)][row["walker"]] = (left, top, left + width, top + height)
    return write_film(path, times, walkers(times, at, COLOURS), size=(160, 120), **settings)


def two_cameras(folder: Path) -> Path:
    """Two visits before each of films/cam1.mp4, which knows the time, and films/cam2.avi; and boxes.jsonl.

    Somebody in red is there from 1 to 3 seconds, and somebody in blue from 7 to 9.
    """
    times = [number / 10 for number in range(110)]
    at: list[dict[int, Box]] = [{} for _ in times]
    rows = []
    for walker, first in enumerate((10, 70)):
        for number in range(first, first + 21):
            left = 20 + 3 * (number - first)
            at[number][walker] = (left, 30, left + 16, 80)
            rows.append({"time_s": number / 10, "box": [left, 30, 16, 50]})
    (folder / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = walkers(times, at, [(220, 30, 30), (30, 30, 220)])
    (folder / "films").mkdir()
    for name, known in (("cam1.mp4", {"creation_time": "2026-11-26T08:00:00Z"}), ("cam2.avi", None)):
        write_film(folder / "films" / name, times, images, size=(160, 120), metadata=known)
    return folder
