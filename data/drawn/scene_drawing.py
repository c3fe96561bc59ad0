"""Draws places, their details by chance, as backdrops that `figure_drawing` puts a person in front of."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

# From the zenith to the horizon.
SKIES: dict[str, tuple[Colour, Colour]] = {
    "clear": ((92, 158, 226), (196, 224, 244)),
    "cloudy": ((150, 156, 164), (206, 208, 210)),
    "sunset": ((120, 82, 140), (250, 170, 96)),
}


def shade(colour: Colour, factor: float) -> Colour:
    """Darker for a factor below 1, mixed with white by the part above 1."""
    if factor <= 1:
        red, green, blue = (int(channel * factor) for channel in colour)
    else:
        red, green, blue = (int(channel + (255 - channel) * (factor - 1)) for channel in colour)
    return red, green, blue


def jittered(colour: Colour, rng: random.Random, amount: int = 9) -> Colour:
    red, green, blue = (min(255, max(0, channel + rng.randint(-amount, amount))) for channel in colour)
    return red, green, blue


@dataclass(frozen=True)
class Brush:
    """Paints on a canvas; coordinates, radii and widths are multiples of `unit` pixels."""

    draw: ImageDraw.ImageDraw
    unit: float

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.unit, y * self.unit) for x, y in points]

    def _width(self, width: float) -> int:
        return max(1, round(width * self.unit))

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        fill: Colour,
        outline: Colour | None = None,
    ) -> None:
        self.draw.rectangle(self._pixels([(left, top), (right, bottom)]), fill=fill, outline=outline)

    def polygon(
        self, points: Sequence[Point], fill: Colour | int, outline: Colour | None = None, width: float = 0.0
    ) -> None:
        self.draw.polygon(self._pixels(points), fill=fill, outline=outline, width=self._width(width))

    def line(self, points: Sequence[Point], fill: Colour | int, width: float) -> None:
        self.draw.line(self._pixels(points), fill=fill, width=self._width(width))

    def disc(self, x: float, y: float, radius: float, fill: Colour | int) -> None:
        self.ellipse(x, y, radius, radius, fill)

    def ellipse(
        self,
        x: float,
        y: float,
        radius_x: float,
        radius_y: float,
        fill: Colour | int | None,
        outline: Colour | None = None,
        width: float = 0.0,
    ) -> None:
        corners = self._pixels([(x - radius_x, y - radius_y), (x + radius_x, y + radius_y)])
        self.draw.ellipse(corners, fill=fill, outline=outline, width=self._width(width))

    def bar(self, start: Point, end: Point, width: float, end_width: float, fill: Colour | int) -> None:
        """A bar with round ends, `width` wide at its start and `end_width` at its end."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        normal_x, normal_y = -(y1 - y0) / length, (x1 - x0) / length
        sides = ((x0, y0, width / 2), (x1, y1, end_width / 2), (x1, y1, -end_width / 2), (x0, y0, -width / 2))
        self.polygon([(x + normal_x * half, y + normal_y * half) for x, y, half in sides], fill)
        self.disc(x0, y0, width / 2, fill)
        self.disc(x1, y1, end_width / 2, fill)


@dataclass(frozen=True)
class Stage(Brush):
    """The canvas of one place; its unit is the canvas's side, so that all coordinates lie in [0, 1]."""

    horizon: float
    rng: random.Random
    sky: str

    def gradient(self, top: float, bottom: float, first: Colour, last: Colour, steps: int = 20) -> None:
        height = (bottom - top) / steps
        for step in range(steps):
            share = step / (steps - 1)
            red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, last, strict=True))
            self.box(0, top + height * step, 1, top + height * (step + 1), (red, green, blue))

    def paint_sky(self) -> None:
        self.gradient(0, self.horizon, *SKIES[self.sky])
        rng = self.rng
        if self.sky == "cloudy":
            for x, y in self.scattered(6, 0.02, self.horizon * 0.7):
                for _ in range(3):
                    aside, above = rng.uniform(-0.09, 0.09), rng.uniform(-0.015, 0.015)
                    self.disc(x + aside, y + above, rng.uniform(0.03, 0.06), (178, 182, 188))
        elif self.sky == "sunset":
            self.disc(rng.uniform(0.1, 0.9), self.horizon * 0.8, 0.06, (255, 226, 150))

    def ground(self, first: Colour, last: Colour) -> None:
        self.gradient(self.horizon, 1, first, last)

    def scattered(self, count: int, top: float, bottom: float = 1.0) -> Iterator[Point]:
        """Places anywhere between two heights."""
        for _ in range(count):
            yield self.rng.random(), self.rng.uniform(top, bottom)

    def posts(self, count: int, top: float, bottom: float, fill: Colour, width: float) -> None:
        """Upright lines from the left to the right edge."""
        for index in range(count):
            x = index / (count - 1)
            self.line([(x, top), (x, bottom)], fill, width)

    def receding_lines(self, rows: range, top: float, step: float, fill: Colour, width: float) -> None:
        """Level lines below `top`, farther apart the nearer they are to the viewer."""
        for row in rows:
            y = top + step * row * (row + 1)
            self.line([(0, y), (1, y)], fill, width)

    def converging_lines(
        self, count: int, top: float, spread: tuple[float, float], fill: Colour, width: float
    ) -> None:
        """Lines from `top` to the lower edge that seem to run away from the viewer."""
        for index in range(count):
            aside = index / (count - 1) - 0.5
            self.line([(0.5 + aside * spread[0], top), (0.5 + aside * spread[1], 1)], fill, width)


def draw_car(brush: Brush, left: float, ground: float, length: float, colour: Colour) -> None:
    """A car seen from its side, its wheels on `ground`, facing +x."""
    height = length * 0.36

    def at(*points: Point) -> list[Point]:
        return [(left + x * length, ground - y * height) for x, y in points]

    body = at(
        (0, 0.2), (0, 0.58), (0.16, 0.62), (0.28, 1.0), (0.62, 1.0), (0.76, 0.62), (0.98, 0.52), (1, 0.2)
    )
    brush.polygon(body, colour, shade(colour, 0.55), 3 / brush.unit)
    brush.polygon(at((0.22, 0.63), (0.31, 0.92), (0.44, 0.92), (0.44, 0.63)), (190, 216, 230))
    brush.polygon(at((0.48, 0.63), (0.48, 0.92), (0.6, 0.92), (0.7, 0.63)), (190, 216, 230))
    ((x, y),) = at((0.96, 0.43))
    brush.ellipse(x, y, 0.03 * length, 0.07 * height, (255, 240, 150))
    for x, y in at((0.22, 0.17), (0.78, 0.17)):
        brush.disc(x, y, height * 0.24, (28, 28, 30))
        brush.disc(x, y, height * 0.11, (170, 170, 176))


def _street(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.paint_sky()
    x = -rng.uniform(0, 0.15)
    while x < 1:
        width = rng.uniform(0.2, 0.32)
        top = rng.uniform(0.04, 0.16)
        wall = rng.choice(((178, 120, 96), (206, 186, 150), (160, 160, 168), (190, 150, 120)))
        stage.box(x, top, x + width, horizon, wall, shade(wall, 0.7))
        for row in range(3):
            for column in range(3):
                left = x + width * (0.12 + 0.29 * column)
                up = top + 0.04 + row * 0.12
                if up + 0.08 < horizon:
                    stage.box(left, up, left + width * 0.18, up + 0.065, (84, 104, 126), (238, 238, 232))
        x += width
    stage.box(0, horizon, 1, horizon + 0.07, (186, 184, 180))
    stage.box(0, horizon + 0.07, 1, horizon + 0.085, (140, 138, 136))
    stage.box(0, horizon + 0.085, 1, 1, (86, 88, 94))
    start = -rng.uniform(0, 0.2)
    for index in range(6):
        x = start + index * 0.25
        stage.box(x, horizon + 0.22, x + 0.13, horizon + 0.245, (240, 238, 226))
    lamp = rng.uniform(0.05, 0.95)
    stage.line([(lamp, horizon + 0.05), (lamp, 0.08), (lamp + 0.06, 0.06)], (50, 52, 56), 0.014)
    stage.disc(lamp + 0.07, 0.07, 0.022, (255, 240, 180))


def _tree(stage: Stage, x: float, base: float, size: float, leaf: Colour) -> None:
    stage.box(x - size * 0.07, base - size * 0.5, x + size * 0.07, base, (104, 72, 44))
    for dx, dy in ((-0.2, 0.6), (0.2, 0.62), (0, 0.85), (0, 0.62)):
        stage.disc(x + dx * size, base - dy * size, size * 0.27, leaf)


def _lawn(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.paint_sky()
    for index in range(7):
        x, size = index / 6 + rng.uniform(-0.06, 0.06), rng.uniform(0.2, 0.3)
        _tree(stage, x, horizon + 0.02, size, jittered((58, 122, 58), rng))
    stage.ground((122, 184, 78), (88, 152, 56))
    for x, y in stage.scattered(60, horizon + 0.02):
        blade = [(x, y), (x + rng.uniform(-0.01, 0.01), y - 0.03)]
        stage.line(blade, rng.choice(((70, 132, 44), (150, 206, 96))), 0.006)
    for x, y in stage.scattered(14, horizon + 0.05):
        stage.disc(x, y, 0.009, rng.choice(((255, 250, 240), (250, 220, 80))))


def _beach(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.paint_sky()
    shore = horizon + rng.uniform(0.1, 0.15)
    stage.ground((246, 224, 170), (222, 190, 130))
    stage.gradient(horizon - 0.06, shore, (24, 96, 160), (72, 176, 204), 12)
    for x, y in stage.scattered(14, horizon - 0.04, shore - 0.02):
        stage.line([(x, y), (x + rng.uniform(0.05, 0.12), y)], (200, 232, 240), 0.006)
    foam = [(index / 8, shore + 0.008 * math.sin(index * 1.9)) for index in range(9)]
    stage.line(foam, (252, 252, 252), 0.022)
    x = rng.choice((rng.uniform(0.08, 0.25), rng.uniform(0.75, 0.92)))
    stage.line([(x, shore + 0.16), (x, shore - 0.14)], (240, 240, 236), 0.012)
    stripe = rng.choice(((220, 60, 50), (40, 120, 200), (240, 160, 40)))
    for index in range(6):
        left, right = x - 0.13 + index * 0.26 / 6, x - 0.13 + (index + 1) * 0.26 / 6
        panel = [(left, shore - 0.06), (right, shore - 0.06), (x, shore - 0.16)]
        stage.polygon(panel, stripe if index % 2 else (250, 248, 240))
    for x, y in stage.scattered(40, shore + 0.04):
        stage.disc(x, y, 0.005, (206, 172, 116))


def _stage(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    floor = horizon + 0.08
    stage.box(0, 0, 1, 1, (38, 30, 52))
    for index, light in enumerate(((94, 84, 116), (110, 88, 104), (84, 92, 122))):
        x = 0.25 + 0.25 * index + rng.uniform(-0.04, 0.04)
        foot = x + rng.uniform(-0.12, 0.12)
        beam = [(x - 0.02, 0), (x + 0.02, 0), (foot + 0.15, floor), (foot - 0.15, floor)]
        stage.polygon(beam, light)
        stage.box(x - 0.035, 0, x + 0.035, 0.04, (20, 20, 24))
    for index in range(4):
        for left in (index * 0.045, 1 - (index + 1) * 0.045):
            stage.box(left, 0, left + 0.045, floor, (152, 26, 40) if index % 2 else (116, 16, 30))
    stage.gradient(floor, 1, (176, 122, 74), (130, 84, 48))
    stage.converging_lines(9, floor, (0.8, 1.8), (104, 66, 38), 0.006)


def _pool(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.box(0, 0, 1, horizon, (226, 238, 242))
    step = 0.06
    for index in range(int(1 / step) + 1):
        stage.line([(index * step, 0), (index * step, horizon)], (196, 214, 222), 0.004)
        if index * step < horizon:
            stage.line([(0, index * step), (1, index * step)], (196, 214, 222), 0.004)
    edge = horizon + 0.2
    stage.gradient(horizon - 0.12, edge, (40, 150, 206), (84, 200, 230), 14)
    for index in range(3):
        y = horizon - 0.07 + index * 0.09
        for segment in range(12):
            buoys = (236, 60, 60) if segment % 2 else (250, 250, 250)
            stage.box(segment / 12, y, (segment + 0.92) / 12, y + 0.014, buoys)
    for x, y in stage.scattered(16, horizon - 0.1, edge - 0.02):
        stage.line([(x, y), (x + 0.06, y + rng.uniform(-0.008, 0.008))], (180, 236, 248), 0.006)
    stage.box(0, edge, 1, edge + 0.03, (250, 250, 248))
    stage.box(0, edge + 0.03, 1, 1, (204, 196, 182))
    stage.converging_lines(11, edge + 0.03, (1.1, 1.9), (178, 170, 156), 0.005)
    ladder = rng.choice((0.1, 0.86))
    for x in (ladder, ladder + 0.06):
        stage.line([(x, edge + 0.08), (x, edge - 0.09), (x + 0.02, edge - 0.11)], (168, 176, 184), 0.014)


def _football_pitch(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.box(0, 0, 1, horizon, (92, 98, 116))
    spectators = ((220, 180, 150), (200, 60, 60), (240, 240, 240), (60, 90, 170), (90, 60, 50))
    for row in range(6):
        y = 0.03 + row * (horizon - 0.08) / 6
        stage.box(0, y + 0.03, 1, y + 0.036, (66, 70, 84))
        for seat in range(22):
            stage.disc((seat + 0.5 * (row % 2)) / 22, y + 0.018, 0.012, rng.choice(spectators))
    stage.box(0, horizon - 0.05, 1, horizon, rng.choice(((30, 70, 150), (170, 40, 46), (30, 110, 90))))
    for band in range(6):
        top, bottom = (horizon + edge * (1 - horizon) / 6 for edge in (band, band + 1))
        stage.box(0, top, 1, bottom, (54, 146, 62) if band % 2 else (72, 168, 76))
    left = rng.uniform(0.1, 0.5)
    right, bar, white, net = left + 0.4, horizon - 0.16, (248, 248, 248), (186, 200, 196)
    for index in range(9):
        x = left + index * 0.05
        stage.line([(x, bar), (x, horizon + 0.04)], net, 0.003)
    for index in range(4):
        y = bar + index * 0.05
        stage.line([(left, y), (right, y)], net, 0.003)
    stage.line([(left, horizon + 0.04), (left, bar), (right, bar), (right, horizon + 0.04)], white, 0.016)
    stage.line([(0, horizon + 0.04), (1, horizon + 0.04)], white, 0.01)
    stage.line([(0, horizon + 0.3), (1, horizon + 0.36)], white, 0.014)


def _gym(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.gradient(0, horizon, (232, 226, 214), (214, 206, 192), 8)
    stage.box(0.06, 0.06, 0.94, horizon - 0.16, (186, 206, 216), (120, 120, 124))
    for index in range(3):
        x = 0.1 + index * 0.3
        shine = [(x, horizon - 0.17), (x + 0.1, 0.07), (x + 0.16, 0.07), (x + 0.06, horizon - 0.17)]
        stage.polygon(shine, (206, 222, 230))
    for level in (horizon - 0.12, horizon - 0.045):
        stage.box(0.04, level, 0.96, level + 0.018, (70, 72, 78))
        x = 0.07 + rng.uniform(0, 0.03)
        while x < 0.88:
            stage.line([(x, level - 0.022), (x + 0.07, level - 0.022)], (150, 152, 158), 0.01)
            for end in (x, x + 0.07):
                stage.box(end - 0.012, level - 0.046, end + 0.012, level, (40, 40, 46))
            x += 0.125
    stage.box(0, horizon, 1, horizon + 0.02, (120, 110, 100))
    stage.gradient(horizon + 0.02, 1, (96, 100, 112), (70, 74, 86))
    colour = rng.choice(((52, 110, 190), (46, 140, 140), (120, 80, 170)))
    shift = rng.uniform(-0.1, 0.1)
    mat = ((0.14, horizon + 0.14), (0.86, horizon + 0.14), (1.0, 1), (0.0, 1))
    stage.polygon([(x + shift, y) for x, y in mat], colour)


def _railway_platform(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.paint_sky()
    stage.box(0, 0, 1, 0.07, (74, 84, 94))
    for index in range(4):
        x = 0.1 + index * 0.28 + rng.uniform(-0.02, 0.02)
        stage.box(x, 0.05, x + 0.022, horizon, (96, 106, 116))
    colour = rng.choice(((196, 60, 50), (44, 120, 90), (46, 80, 156)))
    base = horizon + 0.05
    stage.box(0, 0.16, 1, base, (222, 224, 226))
    stage.box(0, base - 0.14, 1, base - 0.05, colour)
    x = rng.uniform(-0.1, 0.0)
    while x < 1:
        stage.box(x, 0.21, x + 0.13, base - 0.19, (58, 74, 92), (40, 44, 50))
        if x + 0.24 < 1.2:
            stage.box(x + 0.155, 0.19, x + 0.225, base - 0.02, shade(colour, 0.85), (60, 60, 64))
            stage.box(x + 0.17, 0.22, x + 0.21, base - 0.2, (58, 74, 92))
        x += 0.27
    stage.box(0, base, 1, base + 0.03, (44, 44, 48))
    stage.box(0, base + 0.03, 1, 1, (158, 158, 160))
    stage.box(0, base + 0.07, 1, base + 0.1, (240, 200, 40))
    stage.converging_lines(9, base + 0.1, (1.1, 2.0), (136, 136, 140), 0.004)


def _car_park(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.paint_sky()
    stage.box(0, horizon - 0.12, 1, horizon, (150, 126, 110))
    stage.posts(14, horizon - 0.12, horizon, (120, 98, 84), 0.005)
    stage.ground((108, 110, 116), (84, 86, 92))
    stage.converging_lines(6, horizon + 0.12, (1.0, 1.9), (240, 240, 234), 0.012)
    x = -rng.uniform(0, 0.2)
    while x < 1:
        colour = rng.choice(((176, 36, 44), (40, 76, 156), (222, 222, 226), (56, 58, 62), (200, 160, 60)))
        draw_car(stage, x, horizon + 0.1, 0.34, colour)
        x += rng.uniform(0.36, 0.42)


def _playground(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.paint_sky()
    stage.box(0, horizon - 0.05, 1, horizon + 0.02, (96, 150, 76))
    stage.posts(22, horizon - 0.09, horizon + 0.01, (232, 232, 224), 0.01)
    stage.line([(0, horizon - 0.06), (1, horizon - 0.06)], (232, 232, 224), 0.01)
    stage.ground((214, 124, 88), (190, 100, 70))
    slide = rng.uniform(0.04, 0.14)
    blue = (60, 90, 190)
    stage.line([(slide, horizon + 0.12), (slide + 0.02, 0.14)], blue, 0.02)
    stage.line([(slide + 0.08, horizon + 0.12), (slide + 0.07, 0.14)], blue, 0.02)
    for index in range(5):
        y = 0.2 + index * (horizon - 0.12) / 5
        stage.line([(slide + 0.01, y), (slide + 0.08, y)], blue, 0.012)
    chute = [(slide + 0.07, 0.17), (slide + 0.3, horizon + 0.1), (slide + 0.36, horizon + 0.1)]
    stage.line(chute, (240, 190, 40), 0.045)
    swing = rng.uniform(0.6, 0.68)
    for x in (swing, swing + 0.3):
        stage.line([(x - 0.04, horizon + 0.1), (x, 0.12), (x + 0.04, horizon + 0.1)], (200, 50, 60), 0.016)
    stage.line([(swing, 0.12), (swing + 0.3, 0.12)], (200, 50, 60), 0.018)
    for x in (swing + 0.08, swing + 0.2):
        tilt = rng.uniform(-0.03, 0.03)
        for offset in (-0.025, 0.025):
            stage.line([(x + offset, 0.12), (x + offset + tilt, horizon - 0.03)], (70, 70, 74), 0.005)
        seat = [(x + aside + tilt, horizon - 0.03) for aside in (-0.035, 0.035)]
        stage.line(seat, (50, 50, 54), 0.016)


def _forest_path(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.gradient(0, horizon, (44, 86, 52), (120, 158, 100), 12)
    for index in range(9):
        x = index / 8 + rng.uniform(-0.05, 0.05)
        width = rng.uniform(0.02, 0.045)
        bark = jittered((88, 62, 42), rng, 14)
        stage.box(x - width, 0, x + width, horizon + rng.uniform(0.0, 0.06), bark)
        stage.line([(x - width * 0.3, 0), (x - width * 0.2, horizon)], shade(bark, 0.7), 0.006)
    for x, y in stage.scattered(26, -0.02, 0.14):
        stage.disc(x, y, rng.uniform(0.04, 0.08), jittered((46, 104, 50), rng, 16))
    stage.ground((78, 116, 58), (60, 96, 46))
    centre = rng.uniform(0.4, 0.6)
    stage.polygon([(centre - 0.07, horizon), (centre + 0.07, horizon), (0.95, 1), (0.05, 1)], (164, 128, 86))
    for x, y in stage.scattered(30, horizon + 0.03):
        stage.disc(x, y, 0.01, rng.choice(((190, 120, 40), (110, 80, 50), (90, 140, 60))))


def _snow_field(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.paint_sky()
    x = -0.2
    while x < 1.1:
        width = rng.uniform(0.35, 0.5)
        peak = rng.uniform(0.06, 0.18)
        stage.polygon([(x, horizon), (x + width / 2, peak), (x + width, horizon)], (128, 144, 168))
        cap = ((0.36, 0.28), (0.5, 0.0), (0.64, 0.28), (0.5, 0.2))
        snow = [(x + width * along, peak + (horizon - peak) * down) for along, down in cap]
        stage.polygon(snow, (246, 250, 254))
        x += width * 0.7
    stage.ground((238, 244, 250), (214, 226, 240))
    for _ in range(5):
        x, base = rng.random(), horizon + rng.uniform(0.01, 0.06)
        for level in range(3):
            size = 0.06 - level * 0.014
            top = base - 0.05 - level * 0.045
            stage.polygon([(x - size, top + 0.05), (x + size, top + 0.05), (x, top - 0.03)], (50, 92, 72))
            stage.polygon([(x - size * 0.4, top), (x + size * 0.4, top), (x, top - 0.03)], (244, 248, 252))
    for x, y in stage.scattered(45, 0):
        stage.disc(x, y, rng.uniform(0.004, 0.008), (255, 255, 255))


def _supermarket(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.box(0, 0, 1, 0.08, (236, 238, 240))
    for index in range(4):
        stage.box(0.06 + index * 0.25, 0.02, 0.2 + index * 0.25, 0.04, (255, 255, 246))
    stage.box(0, 0.08, 1, horizon + 0.06, (196, 188, 176))
    goods = ((214, 60, 54), (240, 190, 60), (70, 150, 80), (60, 110, 190))
    goods += ((240, 240, 236), (220, 130, 60), (140, 80, 150))
    for row in range(5):
        bottom = 0.08 + (row + 1) * (horizon - 0.02) / 5
        x = 0.005
        while x < 1:
            width = rng.uniform(0.03, 0.055)
            colour = rng.choice(goods)
            stage.box(x, bottom - rng.uniform(0.045, 0.065), x + width, bottom, colour)
            x += width + 0.006
        stage.box(0, bottom, 1, bottom + 0.014, (112, 104, 96))
    stage.box(0, horizon + 0.06, 1, 1, (226, 222, 212))
    stage.converging_lines(9, horizon + 0.06, (1.1, 2.2), (200, 196, 186), 0.005)
    stage.receding_lines(range(1, 5), horizon + 0.06, 0.02, (200, 196, 186), 0.005)


def _bridge(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.paint_sky()
    stage.gradient(horizon - 0.12, horizon + 0.15, (70, 110, 140), (104, 150, 170), 8)
    for x, y in stage.scattered(10, horizon - 0.1, horizon + 0.06):
        stage.line([(x, y), (x + 0.07, y)], (150, 186, 200), 0.005)
    steel = rng.choice(((170, 66, 52), (90, 110, 120)))
    tower = rng.choice((0.12, 0.5, 0.86))
    stage.box(tower - 0.025, 0, tower + 0.025, horizon + 0.12, steel)
    for index in range(-7, 8):
        stage.line([(tower, 0.02), (tower + index * 0.16, horizon + 0.04)], shade(steel, 0.8), 0.006)
    deck = horizon + 0.14
    stage.box(0, deck, 1, 1, (144, 140, 136))
    for index in range(17):
        stage.box(index / 16 - 0.005, horizon, index / 16 + 0.005, deck, steel)
    for y in (horizon, horizon + 0.07):
        stage.box(0, y, 1, y + 0.018, steel)
    stage.box(0, deck, 1, deck + 0.025, (110, 106, 104))
    stage.converging_lines(7, deck + 0.025, (1.1, 1.8), (122, 118, 114), 0.006)


def _basketball_court(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.box(0, 0, 1, horizon, (120, 134, 150))
    for index in range(5):
        stage.box(index * 0.2 + 0.02, 0.05, index * 0.2 + 0.16, 0.16, (206, 226, 236), (90, 100, 112))
    stage.box(0, horizon - 0.08, 1, horizon, (44, 70, 120))
    stage.ground((214, 150, 88), (190, 122, 62))
    stage.receding_lines(range(10), horizon, 0.008, (178, 114, 58), 0.004)
    x = rng.uniform(0.15, 0.85)
    stage.box(x - 0.012, 0.2, x + 0.012, horizon + 0.06, (60, 60, 66))
    stage.box(x - 0.12, 0.08, x + 0.12, 0.24, (248, 248, 248), (40, 40, 44))
    square = [(x - 0.045, 0.21), (x - 0.045, 0.14), (x + 0.045, 0.14), (x + 0.045, 0.21)]
    stage.line(square, (220, 60, 40), 0.008)
    stage.line([(x - 0.055, 0.25), (x + 0.055, 0.25)], (240, 100, 30), 0.016)
    for offset in (-0.045, -0.015, 0.015, 0.045):
        stage.line([(x + offset, 0.25), (x + offset * 0.6, 0.33)], (250, 250, 250), 0.004)
    white = (250, 248, 240)
    stage.line([(0, horizon + 0.08), (1, horizon + 0.08)], white, 0.01)
    near, far = horizon + 0.34, horizon + 0.08
    stage.polygon([(x - 0.14, far), (x + 0.14, far), (x + 0.24, near), (x - 0.24, near)], (170, 60, 54))
    stage.line([(x - 0.14, far), (x - 0.24, near), (x + 0.24, near), (x + 0.14, far)], white, 0.01)


def _desert(stage: Stage) -> None:
    rng, horizon = stage.rng, stage.horizon
    stage.paint_sky()
    for level in range(3):
        base = horizon - 0.1 + level * 0.05
        points = [(index / 8, base + rng.uniform(-0.035, 0.035)) for index in range(9)]
        stage.polygon([(0, 1), *points, (1, 1)], ((206, 138, 84), (220, 152, 92), (232, 170, 104))[level])
    for x, y in stage.scattered(9, horizon + 0.08):
        stage.line([(x, y), (x + 0.06, y - 0.01), (x + 0.12, y)], (206, 142, 84), 0.006)
    for _ in range(3):
        x, base, size = rng.uniform(0.03, 0.97), horizon + rng.uniform(0.02, 0.08), rng.uniform(0.16, 0.24)
        green = jittered((70, 124, 70), rng)
        stage.line([(x, base), (x, base - size)], green, 0.032)
        stage.disc(x, base - size, 0.016, green)
        for sign, rise in ((-1, 0.45), (1, 0.6)):
            y, aside = base - size * rise, x + sign * 0.05
            stage.line([(x, y), (aside, y), (aside, base - size * (rise + 0.3))], green, 0.022)


def _any_colour(rng: random.Random) -> Colour:
    """Gray, or not very vivid."""
    bright, vivid = rng.randrange(256), rng.uniform(0.0, 0.6)
    red, green, blue = (round(bright + vivid * (rng.randrange(256) - bright)) for _ in range(3))
    return red, green, blue


def _made_up_backdrop(stage: Stage) -> None:
    """Above the horizon: a wall, bands, blocks or blobs in any colours, or the open sky with them."""
    rng, horizon = stage.rng, stage.horizon
    if rng.random() < 0.3:
        stage.paint_sky()
    else:
        stage.gradient(0, horizon, _any_colour(rng), _any_colour(rng), 10)
    kind, first = rng.choice(("blocks", "blocks", "blobs", "bands", "columns", "bare")), _any_colour(rng)
    x = rng.uniform(-0.2, 0.0)
    while kind in ("blocks", "columns", "blobs") and x < 1:
        width, top = rng.uniform(0.04, 0.3), rng.uniform(0.0, horizon - 0.05)
        colour = jittered(first, rng, 50) if rng.random() < 0.6 else _any_colour(rng)
        if kind == "blocks":
            stage.box(x, top, x + width, horizon, colour, _any_colour(rng) if rng.random() < 0.3 else None)
            if rng.random() < 0.4:  # windows, goods
                pane = _any_colour(rng)
                for row in range(int((horizon - top) / 0.09)):
                    y = top + 0.09 * row
                    stage.box(x + 0.2 * width, y + 0.03, x + 0.8 * width, y + 0.07, pane)
        elif kind == "columns":
            stage.line([(x, 0), (x + rng.uniform(-0.1, 0.1), horizon)], colour, rng.uniform(0.005, 0.05))
        else:
            stage.ellipse(x, rng.uniform(0.0, horizon), width / 2, rng.uniform(0.02, 0.15), colour)
        x += width * rng.uniform(0.5, 1.3)
    if kind == "bands":
        y = 0.0
        while y < horizon:
            height = rng.uniform(0.01, 0.12)
            stage.box(0, y, 1, min(horizon, y + height), jittered(first, rng, 60))
            y += height + rng.uniform(0.0, 0.06)


def _made_up_things(stage: Stage) -> None:
    """Up to three things that stand, hang or lie anywhere."""
    rng = stage.rng
    for _ in range(rng.randrange(4)):
        x, y, size, colour = rng.random(), rng.uniform(0.05, 0.8), rng.uniform(0.03, 0.18), _any_colour(rng)
        kind = rng.choice(("box", "disc", "pole", "triangle", "frame"))
        if kind == "box":
            stage.box(x, y, x + size * rng.uniform(0.5, 2), y + size, colour)
        elif kind == "disc":
            stage.disc(x, y, size / 2, colour)
        elif kind == "pole":
            pole = [(x, y), (x + rng.uniform(-0.05, 0.05), y + 3 * size)]
            stage.line(pole, colour, rng.uniform(0.006, 0.03))
        elif kind == "triangle":
            stage.polygon([(x, y), (x + size, y + size), (x - size, y + size)], colour)
        else:
            stage.line([(x, y + size), (x, y), (x + 2 * size, y), (x + 2 * size, y + size)], colour, 0.012)


def _made_up(stage: Stage, ground: str) -> None:
    """A place that is nowhere: only its ground can be described."""
    rng, horizon = stage.rng, stage.horizon
    _made_up_backdrop(stage)
    base = _any_colour(rng)
    stage.ground(jittered(base, rng, 16), jittered(base, rng, 40))
    detail = shade(base, rng.choice((0.6, 0.8, 1.3, 1.6)))
    if ground in ("planks", "tiles"):
        count, spread = rng.randint(6, 14), (1.1, rng.uniform(1.6, 2.4))
        stage.converging_lines(count, horizon, spread, detail, rng.uniform(0.004, 0.012))
    if ground == "tiles":
        stage.receding_lines(range(1, 7), horizon, 0.012, detail, 0.005)
    elif ground == "stripes":
        y = horizon + rng.uniform(0.0, 0.1)
        while y < 1:
            height = rng.uniform(0.02, 0.1)
            stage.box(0, y, 1, y + height, detail)
            y += height * rng.uniform(1.5, 3)
    elif ground == "stones":
        for x, y in stage.scattered(50, horizon):
            stage.disc(x, y, rng.uniform(0.004, 0.016), jittered(detail, rng, 40))
    _made_up_things(stage)


SCENES: dict[str, Callable[[Stage], None]] = {
    "street": _street,
    "lawn": _lawn,
    "beach": _beach,
    "stage": _stage,
    "swimming pool": _pool,
    "football pitch": _football_pitch,
    "gym": _gym,
    "railway platform": _railway_platform,
    "car park": _car_park,
    "playground": _playground,
    "forest path": _forest_path,
    "snow field": _snow_field,
    "supermarket": _supermarket,
    "bridge": _bridge,
    "basketball court": _basketball_court,
    "desert": _desert,
    "planks": partial(_made_up, ground="planks"),
    "tiles": partial(_made_up, ground="tiles"),
    "stripes": partial(_made_up, ground="stripes"),
    "stones": partial(_made_up, ground="stones"),
    "bare ground": partial(_made_up, ground="bare"),
}
