"""Draws films of fixed cameras before which people come, do something, and go: with the truth of every visit.

A person walks in from one side, does something at some place, and walks out on the other side. Some lie there
without any movement, and two or a crowd cross each other's way. The last of each camera is somebody whom
another camera has seen before.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..moments import Box
from ..whole_files import replacing, write_json
from . import MANIFEST
from .figure_drawing import POSES, SUPERSAMPLING, Body, Figure, FigurePainter, Pose, skeleton
from .scene_drawing import SCENES, SKIES, Stage
from .synthetic_pab import Look, somebody
from .synthetic_worlds import DEMO_WORLD, World

BODY = 0.42  # a body's height, in shares of the picture's width
SPEED = 0.22  # of the picture's width in a second
STEP_S = 0.3
CLOSE_S = 0.7  # between two of a crowd, who come from one side
HEIGHT = 0.75  # of the picture, in shares of its width
STILL = ("lying", "standing", "phoning")  # what is done without moving
GRAIN = 3  # grey values of a sensor's noise


@dataclass(frozen=True)
class DrawnVisit:
    """The truth about one visit.

    Attributes:
        camera: the film's file name.
        person: equal for one person before several cameras.
        start_s, end_s: first and last frame in which any of the person is in the picture.
        pose: what is done.
        crosses: comes together with somebody else on the way.
        text: about the person and what is done.
        box: left, top, width and height in pixels while it is done.
    """

    camera: str
    person: int
    start_s: float
    end_s: float
    pose: str
    crosses: bool
    text: str
    box: Box


@dataclass(frozen=True)
class _Part:
    """One person's part in a film, in shares of the picture's width and seconds."""

    person: int
    look: Look
    figure: Figure
    pose: str
    text: str
    enters_s: float
    to_the_right: bool
    place: float
    stays_s: float
    ground: float
    crosses: bool

    def at(self, time_s: float) -> tuple[float, Pose, bool] | None:
        """Where the person is, in what posture, and whether it walks; None before and after."""
        since = time_s - self.enters_s
        way = self.place + 0.3 if self.to_the_right else 1.3 - self.place
        arrives = way / SPEED
        walked = since if since < arrives else max(arrives, since - self.stays_s)
        if since < 0 or walked * SPEED > 1.6:
            return None
        x = walked * SPEED - 0.3
        x = x if self.to_the_right else 1 - x
        if arrives <= since < arrives + self.stays_s:
            poses = POSES[self.pose]
            moment = 0 if self.pose in STILL else int((since - arrives) / 0.7) % len(poses)
            return x, poses[moment], False
        return x, POSES["walking"][int(since / STEP_S) % 2], True


def draw_footage(
    folder: Path,
    *,
    cameras: int = 2,
    visits: int = 4,
    seed: int = 0,
    world: World = DEMO_WORLD,
    width: int = 320,
    frames_per_second: int = 10,
    stays_s: float = 6.0,
    crowd: int = 2,
) -> list[DrawnVisit]:
    """Writes `cameras` films, cam1.mp4 and so on, and returns the truth of them.

    Args:
        visits: of each camera; by turns somebody acts, a crowd crosses, and somebody lies still.
        stays_s: how long somebody acts, at least; who lies does so for twice as long.
        crowd: how many meet, half of them from each side, close behind one another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth: list[DrawnVisit] = []
    seen: list[_Part] = []
    for number in range(1, cameras + 1):
        rng = random.Random(f"{world.name}|{seed}|camera|{number}")
        scene, sky = (
            rng.choice([scene for scene in world.scenes if not scene.made_up]),
            rng.choice(tuple(SKIES)),
        )
        parts: list[_Part] = []
        time_s = 2.5
        turns = cycle(("acts", "crosses", "lies"))
        while len(parts) < visits:
            kind = next(turns)
            together = crowd if kind == "crosses" and len(parts) + crowd <= visits else 1
            for place in range(together):
                pose = {"lies": "lying", "crosses": "walking"}.get(kind)
                again = seen[0] if seen and len(parts) == visits - 1 else None
                look, figure, action, text = somebody(world, scene, sky, rng, pose, again and again.look)
                parts.append(
                    _Part(
                        len(seen) + len(parts) if again is None else again.person,
                        look,
                        figure,
                        action.pose,
                        text,
                        time_s + CLOSE_S * (place // 2),
                        to_the_right=place % 2 == 0,
                        place=rng.uniform(0.35, 0.65) if together == 1 else (0.25, 0.75)[place % 2],
                        stays_s={"lies": 2 * stays_s, "crosses": 0.0}.get(kind, stays_s)
                        if together == 1
                        else 0.0,
                        ground=rng.uniform(0.66, 0.69) + 0.02 * (place % 2),
                        crosses=together > 1,
                    )
                )
            last = parts[-1]
            time_s = last.enters_s + 1.6 / SPEED + last.stays_s + rng.uniform(2.5, 4.0)
        seen += parts
        painted = _Painted(scene.name, sky, rng.getrandbits(32), width)
        camera = f"cam{number}.mp4"
        with replacing(folder / camera) as unfinished:
            sights = _write(unfinished, painted, parts, time_s, frames_per_second)
        for part, times in zip(parts, sights, strict=True):
            box = painted.box(part)
            truth.append(
                DrawnVisit(camera, part.person, times[0], times[-1], part.pose, part.crosses, part.text, box)
            )
    write_json(folder / MANIFEST, {"world": world.name, "cameras": cameras, "visits": visits, "seed": seed})
    return truth


class _Painted:
    """A place, and people in it."""

    def __init__(self, scene: str, sky: str, scene_seed: int, width: int):
        self.width, self.height = width // 2 * 2, int(width * HEIGHT) // 2 * 2
        self.side = self.width * SUPERSAMPLING
        canvas = Image.new("RGB", (self.side, self.side))
        horizon = random.Random(scene_seed).uniform(0.36, 0.42)
        SCENES[scene](Stage(ImageDraw.Draw(canvas), self.side, horizon, random.Random(scene_seed), sky))
        self.backdrop = canvas.crop((0, 0, self.side, self.height * SUPERSAMPLING))
        self.noise = np.random.default_rng(scene_seed)

    def body(self, part: _Part, x: float, pose: Pose) -> Body:
        unit = BODY * self.side
        sign = 1 if part.to_the_right else -1
        ground = part.ground * self.side / unit
        joints = {
            name: (x * self.side / unit + sign * across, ground - up)
            for name, (across, up) in skeleton(pose, part.figure).items()
        }
        return Body(joints, unit, ground)

    def box(self, part: _Part) -> Box:
        """The person's, in pixels of the film, while it acts."""
        pose = POSES[part.pose][0]
        points = self.body(part, part.place, pose).joints.values()
        scale = BODY * self.width
        left, right = min(x for x, _ in points) * scale, max(x for x, _ in points) * scale
        top, bottom = min(y for _, y in points) * scale, max(y for _, y in points) * scale
        return left, top, right - left, bottom - top

    def frame(self, parts: list[_Part], time_s: float) -> tuple[np.ndarray, list[bool]]:
        """The picture, and which of the people are in it."""
        canvas, visible = self.backdrop.copy(), []
        for part in parts:
            at = part.at(time_s)
            if at is None:
                visible.append(False)
                continue
            body = self.body(part, at[0], at[1])
            left, right = (edge * body.unit / self.side for edge in body.extent())
            visible.append(right + 0.02 > 0 and left - 0.02 < 1)
            if visible[-1]:
                FigurePainter(canvas, part.figure, body).paint()
        pixels = np.asarray(canvas.reduce(SUPERSAMPLING), np.int16)
        grain = self.noise.integers(-GRAIN, GRAIN + 1, (self.height, self.width, 1), dtype=np.int16)
        return np.clip(pixels + grain, 0, 255).astype(np.uint8), visible


def _write(
    path: Path, painted: _Painted, parts: list[_Part], seconds: float, frames_per_second: int
) -> list[list[float]]:
    """Encodes the film; returns for each part the times at which the person is in the picture."""
    import av

    sights: list[list[float]] = [[] for _ in parts]
    with av.open(str(path), "w", format="mp4") as target:
        stream = target.add_stream("mpeg4", rate=frames_per_second)
        stream.width, stream.height, stream.pix_fmt = painted.width, painted.height, "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.time_base = Fraction(1, frames_per_second)
        for number, image in enumerate(_frames(painted, parts, seconds, frames_per_second, sights)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, frames_per_second)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return sights


def _frames(
    painted: _Painted, parts: list[_Part], seconds: float, frames_per_second: int, sights: list[list[float]]
) -> Iterator[np.ndarray]:
    for number in range(int(seconds * frames_per_second)):
        time_s = number / frames_per_second
        image, visible = painted.frame(parts, time_s)
        for times, is_visible in zip(sights, visible, strict=True):
            if is_visible:
                times.append(time_s)
        yield image
