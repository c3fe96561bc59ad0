"""Draws one articulated person doing something in a scene, as a small RGB image.

The subject is geometry and paint: `synthetic_worlds` says which looks, scenes and actions exist together,
and which words describe them. Everything random comes from the `random.Random` passed in.
Lengths are in body heights: 1 is an upright person from sole to crown.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from . import read_tables
from .scene_drawing import SCENES, SKIES, Brush, Colour, Point, Stage, draw_car, shade

SUPERSAMPLING = 2  # drawn at twice the size, then averaged: Pillow's polygons have no anti-aliasing
HAZE: Colour = (206, 208, 212)  # what backgrounds fade into


@dataclass(frozen=True)
class Garment:
    """A piece of clothing or a carried thing: what shape it has, its colour, and its surface."""

    shape: str
    colour: Colour
    pattern: str = "plain"


@dataclass(frozen=True)
class Figure:
    """All that is painted of a person; `lower` is None where the upper garment is a dress."""

    woman: bool
    stoutness: float
    skin: Colour
    hair_style: str
    hair_colour: Colour
    upper: Garment
    lower: Garment | None
    shoes: Colour
    headwear: Garment | None = None
    carried: Garment | None = None


@dataclass(frozen=True)
class Pose:
    """Joint angles in degrees of a person who faces forward (+x); 0 hangs straight down, positive is forward.

    A limb is (angle at shoulder or hip, bend at elbow or knee). Arms are relative to the torso. `rotation`
    turns the whole body forward, `lift` raises it above the ground, in body heights.
    """

    lean: float
    near_arm: tuple[float, float]
    far_arm: tuple[float, float]
    near_leg: tuple[float, float]
    far_leg: tuple[float, float]
    rotation: float = 0.0
    lift: float = 0.0
    head: float = 0.0


POSES = {action: tuple(Pose(**pose) for pose in poses) for action, poses in read_tables("poses.toml").items()}
SKINS: tuple[Colour, ...] = ((244, 208, 178), (226, 182, 146), (196, 146, 106), (150, 104, 72), (104, 70, 50))


# --- skeleton ---------------------------------------------------------------------------------------------


def _toward(origin: Point, angle: float, length: float) -> Point:
    radians = math.radians(angle)
    return origin[0] + length * math.sin(radians), origin[1] - length * math.cos(radians)


def jittered_pose(pose: Pose, rng: random.Random) -> Pose:
    def vary(angle: float, spread: float = 7.0) -> float:
        return angle + rng.uniform(-spread, spread)

    def vary_limb(angles: tuple[float, float]) -> tuple[float, float]:
        return vary(angles[0]), vary(angles[1])

    return Pose(
        vary(pose.lean, 4),
        vary_limb(pose.near_arm),
        vary_limb(pose.far_arm),
        vary_limb(pose.near_leg),
        vary_limb(pose.far_leg),
        vary(pose.rotation, 5) if pose.rotation else 0.0,
        pose.lift * rng.uniform(0.8, 1.25),
        vary(pose.head, 6),
    )


def skeleton(pose: Pose, figure: Figure) -> dict[str, Point]:
    """Joints in body heights, x forward and y up, the lowest point at y = `pose.lift`."""
    shoulder = (0.066 if figure.woman else 0.082) * figure.stoutness
    hip = (0.05 if figure.woman else 0.046) * figure.stoutness
    up_x, up_y = math.sin(math.radians(pose.lean)), math.cos(math.radians(pose.lean))
    chest = (0.29 * up_x, 0.29 * up_y)
    joints: dict[str, Point] = {"pelvis": (0.0, 0.0), "chest": chest}
    head_angle = 180 - pose.lean - pose.head
    joints["neck"] = _toward(chest, head_angle, 0.045)
    joints["head"] = _toward(chest, head_angle, 0.125)
    joints["crown"] = _toward(chest, head_angle, 0.215)
    sides = (("near", -1, pose.near_arm, pose.near_leg), ("far", 1, pose.far_arm, pose.far_leg))
    for side, sign, arm, leg in sides:
        shoulder_at = (chest[0] + sign * shoulder * up_y, chest[1] - sign * shoulder * up_x - 0.012)
        elbow = _toward(shoulder_at, arm[0] - pose.lean, 0.15)
        hand = _toward(elbow, arm[0] - pose.lean + arm[1], 0.145)
        joints |= {f"{side}_shoulder": shoulder_at, f"{side}_elbow": elbow, f"{side}_hand": hand}
        hip_at = (sign * hip, 0.0)
        knee = _toward(hip_at, leg[0], 0.225)
        ankle = _toward(knee, leg[0] + leg[1], 0.22)
        toe = _toward(ankle, leg[0] + leg[1] + 84, 0.068)
        joints |= {f"{side}_hip": hip_at, f"{side}_knee": knee, f"{side}_ankle": ankle, f"{side}_toe": toe}
    turn = math.radians(-pose.rotation)
    cosine, sine = math.cos(turn), math.sin(turn)
    joints = {name: (x * cosine - y * sine, x * sine + y * cosine) for name, (x, y) in joints.items()}
    # Flesh has thickness: a lying torso would otherwise sink into the ground by half its width.
    thickness = 0.035 + 0.05 * abs(math.sin(math.radians(pose.rotation)))
    trunk = min(joints["pelvis"][1], joints["chest"][1]) - thickness
    lowest = min(trunk, min(y for _, y in joints.values()) - 0.02)
    return {name: (x, y - lowest + pose.lift) for name, (x, y) in joints.items()}


@dataclass(frozen=True)
class Body:
    """A skeleton on a canvas: joints from the upper left corner, y down; `unit` pixels to a body height."""

    joints: dict[str, Point]
    unit: float
    ground: float

    def __getitem__(self, joint: str) -> Point:
        return self.joints[joint]

    def extent(self) -> tuple[float, float]:
        """The leftmost and the rightmost joint's x."""
        return min(x for x, _ in self.joints.values()), max(x for x, _ in self.joints.values())


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _direction(start: Point, end: Point) -> Point:
    length = math.hypot(end[0] - start[0], end[1] - start[1]) or 1.0
    return (end[0] - start[0]) / length, (end[1] - start[1]) / length


# --- cloth ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A limb or a sleeve: a bar with round ends."""

    start: Point
    end: Point
    width: float
    end_width: float

    def trace(self, brush: Brush, fill: Colour | int, margin: float = 0.0) -> None:
        brush.bar(self.start, self.end, self.width + 2 * margin, self.end_width + 2 * margin, fill)


@dataclass(frozen=True)
class Patch:
    points: tuple[Point, ...]

    def trace(self, brush: Brush, fill: Colour | int, margin: float = 0.0) -> None:
        brush.polygon(self.points, fill)
        if margin:
            brush.line([*self.points, self.points[0]], fill, 2 * margin)


Shape = Bar | Patch


def _contrasting(colour: Colour) -> Colour:
    """The second colour of a pattern: dark on a light garment, light on a dark one."""
    luminance = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    return shade(colour, 0.42) if luminance > 150 else shade(colour, 1.78)


def _is_bright(colour: Colour) -> bool:
    return sum(colour) > 380


def _print_pattern(
    canvas: Image.Image,
    shapes: tuple[Shape, ...],
    unit: float,
    pattern: str,
    colour: Colour,
    axis: Point,
) -> None:
    """Prints a pattern on the shapes only, along the body's `axis`."""
    mask = Image.new("L", canvas.size)
    brush = Brush(ImageDraw.Draw(mask), unit)
    for shape in shapes:
        shape.trace(brush, 255)
    bounds = mask.getbbox()
    if bounds is None:  # wholly outside the canvas
        return
    left, top, right, bottom = bounds
    rows, columns = np.ogrid[top:bottom, left:right]
    period = 0.062 * unit
    along = (columns * axis[0] + rows * axis[1]).astype(np.float32)
    across = (columns * -axis[1] + rows * axis[0]).astype(np.float32)
    if pattern == "striped":
        inked = np.mod(along, period) < period * 0.46
    elif pattern == "checked":
        inked = (np.mod(along, period * 1.3) < period * 0.65) ^ (np.mod(across, period * 1.3) < period * 0.65)
    elif pattern == "dotted":
        square = (np.mod(along, period) - period / 2) ** 2 + (np.mod(across, period) - period / 2) ** 2
        inked = square < (period * 0.31) ** 2
    else:
        raise ValueError(f"unknown pattern {pattern!r}")
    ink = np.where(inked, np.asarray(mask.crop(bounds)), 0).astype(np.uint8)
    canvas.paste(_contrasting(colour), (left, top), Image.fromarray(ink))


# --- the person -------------------------------------------------------------------------------------------

# The upper garment's sleeves, and how far down the thigh it reaches, as a share of the thigh.
UPPER_SHAPES: dict[str, tuple[str, float]] = {
    "t-shirt": ("short", 0.14),
    "shirt": ("long", 0.14),
    "jacket": ("long", 0.16),
    "sweater": ("long", 0.1),
    "coat": ("long", 0.98),
    "dress": ("short", 0.9),
    "hoodie": ("long", 0.16),
    "tank top": ("none", 0.1),
    "vest": ("none", 0.14),
    "raincoat": ("long", 0.8),
}
LOOSE_UPPERS = ("coat", "raincoat", "jacket", "hoodie")
LEG_LOOSENESS = {"trousers": 1.22, "leggings": 1.0, "jeans": 1.14, "joggers": 1.24}
HEAD = 0.078  # radius
SHIRT_BELOW = (236, 234, 226)  # what a vest and an open jacket are worn over


class FigurePainter:
    """Paints one figure in one body's posture, from back to front."""

    def __init__(self, canvas: Image.Image, figure: Figure, body: Body) -> None:
        self.canvas, self.figure, self.body = canvas, figure, body
        self.brush = Brush(ImageDraw.Draw(canvas), body.unit)
        stout, woman = figure.stoutness, figure.woman
        self.down = _direction(body["chest"], body["pelvis"])
        self.across = _direction(body["near_shoulder"], body["far_shoulder"])
        self.arm_widths = (0.05 * stout, 0.042 * stout, 0.034)
        self.leg_widths = (0.078 * stout, 0.058 * stout, 0.045)
        self.shoulder_half = (0.088 if woman else 0.106) * stout
        self.waist_half = (0.056 if woman else 0.068) * stout
        self.hip_half = (0.082 if woman else 0.07) * stout
        self.sleeves, self.reach = UPPER_SHAPES[figure.upper.shape]
        self.top = self.at(body["chest"], -0.012)
        self.waist = _between(body["chest"], body["pelvis"], 0.66)
        self.seat = self.at(body["pelvis"], 0.03)
        self.front = self.shoulder_half * 0.2  # where the buttons run: the body is seen half from the side

    def at(self, origin: Point, down: float = 0.0, across: float = 0.0) -> Point:
        """A point moved along the spine, toward the pelvis, and across the shoulders, toward the far one."""
        return (
            origin[0] + down * self.down[0] + across * self.across[0],
            origin[1] + down * self.down[1] + across * self.across[1],
        )

    def cloth(self, garment: Garment, *shapes: Shape, dim: float = 1.0) -> None:
        """Shapes as one piece of cloth with a thin edge that shows on any background."""
        colour = shade(garment.colour, dim)
        edge = shade(colour, 0.62) if sum(colour) > 150 else shade(colour, 1.22)
        for shape in shapes:
            shape.trace(self.brush, edge, self.canvas.width / 260 / self.body.unit)
        for shape in shapes:
            shape.trace(self.brush, colour)
        if garment.pattern != "plain":
            _print_pattern(self.canvas, shapes, self.body.unit, garment.pattern, colour, self.down)

    def paint(self) -> None:
        self._carried({"backpack": self._backpack})
        if self.figure.upper.shape in ("hoodie", "raincoat"):
            self._hood()
        if self.figure.hair_style in ("long", "ponytail"):
            self._hair_behind()
        self._arm("far", 0.8)
        self._leg("far", 0.82)
        self._leg("near", 1.0)
        self._hips()
        self._torso()
        self._carried({"backpack": self._backpack_straps, "shoulder bag": self._shoulder_bag})
        self._head()
        self._arm("near", 1.0)
        self._carried({"handbag": self._handbag, "balloon": self._balloon})

    def _arm(self, side: str, dim: float) -> None:
        upper = self.figure.upper
        shoulder, elbow, hand = (self.body[f"{side}_{joint}"] for joint in ("shoulder", "elbow", "hand"))
        first, second, third = self.arm_widths
        bare = Garment("sleeve", SHIRT_BELOW if upper.shape == "vest" else self.figure.skin)
        self.cloth(bare, Bar(shoulder, elbow, first, second), Bar(elbow, hand, second, third), dim=dim)
        if self.sleeves == "short":
            end = _between(shoulder, elbow, 0.72)
            self.cloth(upper, Bar(shoulder, end, first * 1.3, first * 1.34), dim=dim)
        elif self.sleeves == "long":
            first, second, third = (
                width * (1.38 if upper.shape in LOOSE_UPPERS else 1.14) for width in self.arm_widths
            )
            cuff = _between(elbow, hand, 0.9)
            self.cloth(upper, Bar(shoulder, elbow, first, second), Bar(elbow, cuff, second, third), dim=dim)
        self.brush.disc(*hand, 0.026, shade(self.figure.skin, dim))

    def _leg(self, side: str, dim: float) -> None:
        lower = self.figure.lower
        hip, knee, ankle, toe = (self.body[f"{side}_{joint}"] for joint in ("hip", "knee", "ankle", "toe"))
        first, second, third = self.leg_widths
        skin = Garment("skin", self.figure.skin)
        self.cloth(skin, Bar(hip, knee, first, second), Bar(knee, ankle, second, third), dim=dim)
        if lower is not None and lower.shape == "shorts":
            end = _between(hip, knee, 0.86)
            self.cloth(lower, Bar(hip, end, first * 1.16, second * 1.5), dim=dim)
        elif lower is not None and lower.shape != "skirt":
            wide = LEG_LOOSENESS[lower.shape]
            end = _between(knee, ankle, 0.8 if lower.shape == "leggings" else 0.96)
            thigh = Bar(hip, knee, first * wide, second * wide)
            self.cloth(lower, thigh, Bar(knee, end, second * wide, third * wide), dim=dim)
            if lower.shape == "jeans":  # rolled-up hems
                hem = Bar(_between(knee, ankle, 0.84), end, third * 1.45, third * 1.45)
                self.cloth(Garment("hem", shade(lower.colour, 1.5)), hem, dim=dim)
            elif lower.shape == "joggers":  # a stripe along the whole leg
                stripe = shade((246, 246, 240), dim) if sum(lower.colour) < 600 else (70, 70, 76)
                self.brush.line([hip, knee], stripe, 0.016)
                self.brush.line([knee, end], stripe, 0.016)
        heel = (ankle[0], ankle[1] + 0.006)
        self.cloth(Garment("shoe", self.figure.shoes), Bar(heel, toe, 0.056, 0.044), dim=dim)

    def _flare(self, hip_half: float, reach: float) -> Patch:
        """A skirt: from the waist to `reach` of the way down both thighs, following the legs."""
        body = self.body
        near = _between(body["near_hip"], body["near_knee"], reach)
        far = _between(body["far_hip"], body["far_knee"], reach)
        if (near[0] - far[0]) * self.across[0] + (near[1] - far[1]) * self.across[1] > 0:
            near, far = far, near
        return Patch(
            (
                self.at(self.waist, 0, -self.waist_half),
                self.at(self.waist, 0, self.waist_half),
                self.at(body["pelvis"], 0, hip_half),
                self.at(far, 0, hip_half * 0.75),
                self.at(near, 0, -hip_half * 0.75),
                self.at(body["pelvis"], 0, -hip_half),
            )
        )

    def _hips(self) -> None:
        lower = self.figure.lower
        if lower is None:
            return
        if lower.shape == "skirt":
            self.cloth(lower, self._flare(self.hip_half, 0.86))
        else:
            near, far = self.at(self.body["near_hip"], 0.02), self.at(self.body["far_hip"], 0.02)
            self.cloth(lower, Bar(near, far, self.leg_widths[0] * 1.15, self.leg_widths[0] * 1.15))

    def _torso(self) -> None:
        upper = self.figure.upper
        levels = ((self.top, self.shoulder_half), (self.waist, self.waist_half), (self.seat, self.hip_half))
        outline = [self.at(point, 0, half) for point, half in levels]
        outline += [self.at(point, 0, -half) for point, half in reversed(levels)]
        shoulders = self.shoulder_half * 0.86
        shapes: list[Shape] = [
            Patch(tuple(outline)),
            Bar(self.at(self.top, 0, -shoulders), self.at(self.top, 0, shoulders), 0.04, 0.04),
        ]
        if self.reach > 0.5:
            shapes.append(self._flare(self.hip_half * (1.0 if upper.shape == "dress" else 1.1), self.reach))
        self.brush.bar(self.body["chest"], self.body["head"], 0.06, 0.05, shade(self.figure.skin, 0.9))
        self.cloth(upper, *shapes)
        if upper.shape in ("jacket", "vest"):
            self._open_front()
        elif upper.shape in ("shirt", "coat", "raincoat"):
            self._buttons()
        elif upper.shape == "hoodie":
            self._pocket_and_cords()
        elif upper.shape == "dress":
            self._band(self.waist, self.waist_half, 0.016)
        elif upper.shape == "sweater":
            self._band(self.at(self.top, -0.008), 0.045, 0.02)
            self._band(self.seat, self.hip_half, 0.02)

    def _line_colour(self) -> Colour:
        colour = self.figure.upper.colour
        return shade(colour, 0.5) if _is_bright(colour) else shade(colour, 1.6)

    def _band(self, centre: Point, half: float, width: float) -> None:
        self.brush.line([self.at(centre, 0, -half), self.at(centre, 0, half)], self._line_colour(), width)

    def _hem(self) -> Point:
        return self.at(self.seat, (self.reach - 0.12) * 0.2)

    def _open_front(self) -> None:
        colour = self.figure.upper.colour
        corners = ((self.top, -0.03), (self.top, 0.03), (self._hem(), 0.026), (self._hem(), -0.026))
        inside = SHIRT_BELOW if sum(colour) < 620 else (90, 94, 104)
        self.brush.polygon([self.at(point, 0, self.front + aside) for point, aside in corners], inside)
        if self.figure.upper.shape == "vest":  # quilting
            for share in (0.3, 0.55, 0.8):
                level = _between(self.top, self.seat, share)
                for start, end in ((-0.65, -0.1), (0.4, 0.68)):
                    seam = [self.at(level, 0, self.shoulder_half * aside) for aside in (start, end)]
                    self.brush.line(seam, self._line_colour(), 0.012)

    def _buttons(self) -> None:
        colour, line = self.figure.upper.colour, self._line_colour()
        hem = self._hem()
        self.brush.line([self.at(self.top, 0, self.front), self.at(hem, 0, self.front)], line, 0.012)
        for share in (0.2, 0.45, 0.7, 0.95):
            self.brush.disc(*self.at(_between(self.top, hem, share), 0, self.front + 0.018), 0.009, line)
        if self.figure.upper.shape != "raincoat":
            lapel = shade(colour, 0.75) if _is_bright(colour) else shade(colour, 1.4)
            corner = self.at(self.top, -0.012, self.front)
            for sign in (-1, 1):
                points = [corner, self.at(corner, 0, sign * 0.055), self.at(corner, 0.06, sign * 0.03)]
                self.brush.polygon(points, lapel)

    def _pocket_and_cords(self) -> None:
        colour = self.figure.upper.colour
        upper_edge = _between(self.top, self.seat, 0.72)
        corners = ((upper_edge, -0.04), (upper_edge, 0.04), (self.seat, 0.055), (self.seat, -0.055))
        pocket = shade(colour, 0.72) if _is_bright(colour) else shade(colour, 1.25)
        self.brush.polygon([self.at(point, 0, self.front + aside) for point, aside in corners], pocket)
        cord = (245, 245, 245) if sum(colour) < 620 else (80, 80, 80)
        for sign in (-1, 1):
            start = self.at(self.top, 0, self.front + sign * 0.018)
            self.brush.line([start, self.at(start, 0.09)], cord, 0.012)

    def _hood(self) -> None:
        upper, body = self.figure.upper, self.body
        behind = self.at(body["neck"], -0.012)
        if upper.shape == "raincoat":  # worn on the head
            shape = Bar(behind, body["head"], 0.17, 0.19)
        else:
            shape = Bar(body["near_shoulder"], behind, 0.07, 0.11)
        self.cloth(Garment("hood", shade(upper.colour, 0.78)), shape)

    def _carried(self, painters: dict[str, Callable[[Garment], None]]) -> None:
        """Paints what the figure carries, if it is one of these things."""
        carried = self.figure.carried
        if carried is not None and carried.shape in painters:
            painters[carried.shape](carried)

    def _backpack(self, carried: Garment) -> None:
        start = self.at(self.body["chest"], 0.05)
        # Behind one who faces forward.
        start = (start[0] - 0.11 * self.down[1], start[1] + 0.11 * self.down[0])
        self.cloth(carried, Bar(start, self.at(start, 0.15), 0.13, 0.15))

    def _backpack_straps(self, carried: Garment) -> None:
        for share in (-0.55, 0.55):
            start = self.at(self.top, 0, self.shoulder_half * share)
            self.brush.line([start, self.at(start, 0.17)], shade(carried.colour, 0.85), 0.022)

    def _shoulder_bag(self, carried: Garment) -> None:
        start = self.at(self.top, 0, self.shoulder_half * 0.7)
        end = self.at(self.seat, 0.03, -self.hip_half * 1.1)
        self.brush.line([start, end], shade(carried.colour, 0.8), 0.022)
        corners = ((0, -0.075), (0, 0.075), (0.07, 0.075), (0.07, -0.075))
        self.cloth(carried, Patch(tuple(self.at(end, down, across) for down, across in corners)))

    def _handbag(self, carried: Garment) -> None:
        x, y = self.body["near_hand"]
        handle = [(x - 0.032, y + 0.035), (x - 0.026, y), (x + 0.026, y), (x + 0.032, y + 0.035)]
        self.brush.line(handle, shade(carried.colour, 0.6), 0.014)
        corners = ((-0.05, 0.03), (0.05, 0.03), (0.065, 0.125), (-0.065, 0.125))
        self.cloth(carried, Patch(tuple((x + aside, y + below) for aside, below in corners)))

    def _balloon(self, carried: Garment) -> None:
        x, y = self.body["far_hand"]
        colour = carried.colour
        centre_x, centre_y = x + 0.12, max(0.09, y - 0.36)
        self.brush.line([(x, y), (centre_x, centre_y + 0.08)], (90, 90, 90), 0.008)
        self.brush.ellipse(centre_x, centre_y, 0.07, 0.085, colour, shade(colour, 0.6), 0.008)
        self.brush.disc(centre_x - 0.025, centre_y - 0.035, 0.014, shade(colour, 1.7))

    # The head, in head radii: forward is where the face looks, upward is toward the crown.

    def _from_head(self, forward: float, upward: float) -> Point:
        x, y = self.body["head"]
        up_x, up_y = _direction(self.body["head"], self.body["crown"])
        return x + HEAD * (upward * up_x - forward * up_y), y + HEAD * (upward * up_y + forward * up_x)

    def _around_head(self, centre: float, width: float, height: float, *angles: float) -> list[Point]:
        return [self._from_head(math.cos(at) * width, centre + math.sin(at) * height) for at in angles]

    def _hair_behind(self) -> None:
        hair = self.figure.hair_colour
        if self.figure.hair_style == "long":
            self.brush.bar(self._from_head(-0.45, 0.26), self._from_head(-0.45, -2.05), 0.15, 0.12, hair)
        else:
            self.brush.bar(self._from_head(-1.09, 0.51), self._from_head(-1.73, -1.41), 0.055, 0.035, hair)

    def _head(self) -> None:
        figure, brush = self.figure, self.brush
        hair, style = figure.hair_colour, figure.hair_style
        if style == "afro":
            curls = ((-0.9, 0.1), (-0.75, 0.8), (0, 1.1), (0.65, 0.85), (-0.5, 0.4), (0.1, 0.5))
            for forward, upward in curls:
                brush.disc(*self._from_head(forward, upward), HEAD * 0.72, hair)
        elif style != "bald":
            brush.disc(*self._from_head(-0.12, 0.16), HEAD * 1.14, hair)
        brush.disc(*self._from_head(0, 0), HEAD, shade(figure.skin, 0.66))
        brush.disc(*self._from_head(0, 0), HEAD * 0.95, figure.skin)
        if style != "bald":  # hair over the top and the back
            outside = self._around_head(0, 1.04, 1.04, 0.85, 1.2, 1.6, 2.0, 2.4, 2.8, 3.2, 3.6)
            hairline = [self._from_head(*point) for point in ((-0.45, -0.3), (-0.3, 0.35), (0.3, 0.5))]
            brush.polygon([*outside, *hairline], hair)
        if style == "bun":
            brush.disc(*self._from_head(-0.55, 1.15), HEAD * 0.5, hair)
        elif style == "mohawk":
            angles = (0.95, 1.0, 1.3, 1.5, 1.8, 2.1, 2.4, 2.7, 2.8)
            lengths = (1.0, 1.6, 1.3, 1.75, 1.35, 1.75, 1.3, 1.6, 1.0)
            spikes = [self._around_head(0, far, far, at)[0] for at, far in zip(angles, lengths, strict=True)]
            brush.polygon(spikes, hair)
        for forward in (0.28, 0.68):
            brush.disc(*self._from_head(forward, 0.08), HEAD * 0.1, (40, 30, 30))
        lips = (176, 70, 70) if figure.woman else (130, 76, 64)
        brush.line([self._from_head(0.25, -0.45), self._from_head(0.7, -0.42)], lips, HEAD * 0.14)
        if figure.headwear is not None:
            self._headwear(figure.headwear)

    def _headwear(self, headwear: Garment) -> None:
        brush, point = self.brush, self._from_head
        colour, edge = headwear.colour, shade(headwear.colour, 0.62)
        half_circle = (0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8, math.pi)
        if headwear.shape == "helmet":
            brush.polygon(self._around_head(0.2, 1.3, 1.2, *half_circle, 3.6), colour, edge)
            for forward in (-0.5, 0.1, 0.6):  # vents
                brush.line([point(forward, 0.75), point(forward - 0.12, 1.15)], shade(colour, 0.4), 0.017)
            brush.line([point(0.1, 0.2), point(0.25, -0.85)], (40, 40, 40), 0.008)
            return
        brush.polygon(self._around_head(0.34, 1.14, 0.92, *half_circle), colour, edge)
        if headwear.shape == "cap":
            brush.line([point(0.4, 0.36), point(1.75, 0.26)], edge, 0.021)
        elif headwear.shape == "beanie":
            brush.line([point(-1.14, 0.36), point(1.14, 0.36)], shade(colour, 1.35), 0.025)
            brush.disc(*point(0, 1.4), HEAD * 0.26, shade(colour, 1.35))
        elif headwear.shape == "sun hat":
            brush.line([point(-2.0, 0.3), point(2.0, 0.3)], edge, 0.029)
            brush.line([point(-1.95, 0.36), point(1.95, 0.36)], colour, 0.017)
        else:
            raise ValueError(f"unknown headwear {headwear.shape!r}")


# --- things that belong to an action ----------------------------------------------------------------------

BALL = 0.068  # radius
INK = (40, 40, 44)


def _around(x: float, y: float, radius: float, degrees: float) -> Point:
    """A point on a circle, counted from the right, clockwise."""
    return x + radius * math.cos(math.radians(degrees)), y + radius * math.sin(math.radians(degrees))


def _ball(brush: Brush, x: float, y: float) -> None:
    brush.disc(x, y, BALL, INK)
    brush.disc(x, y, BALL * 0.92, (250, 250, 250))
    for degrees in (-90, -162, -234, -306, -18):
        brush.disc(*_around(x, y, 0.62 * BALL, degrees), BALL * 0.2, INK)
    brush.disc(x, y, BALL * 0.26, INK)


def _impact(brush: Brush, x: float, y: float) -> None:
    """Rays around the place where something hits."""
    for index in range(8):
        radii = (BALL * 1.15, BALL * (1.75 if index % 2 else 1.5))
        ray = [_around(x, y, radius, index * 45 + 20) for radius in radii]
        brush.line(ray, (255, 214, 40), 0.016)


def _board(brush: Brush, x: float, y: float, angle: float) -> None:
    along = (math.cos(math.radians(angle)), -math.sin(math.radians(angle)))
    start, end = (x - 0.195 * along[0], y - 0.195 * along[1]), (x + 0.195 * along[0], y + 0.195 * along[1])
    for share in (0.2, 0.8):
        wheel_x, wheel_y = _between(start, end, share)
        wheel = (wheel_x - 0.032 * along[1], wheel_y + 0.032 * along[0])
        brush.disc(*wheel, 0.025, (240, 220, 60))
        brush.disc(*wheel, 0.0115, (60, 60, 60))
    brush.bar(start, end, 0.037, 0.037, (120, 62, 30))


def _bench(brush: Brush, body: Body) -> None:
    x, seat = body["pelvis"][0], body["pelvis"][1] + 0.06
    wood, edge, metal = (142, 92, 52), (85, 55, 31), (70, 70, 74)
    for left, top in ((-0.2, 0.0), (0.16, 0.0), (-0.3, -0.24)):
        brush.box(x + left, seat + top, x + left + 0.035, body.ground, metal)
    for top, bottom in ((-0.01, 0.035), (-0.14, -0.1), (-0.22, -0.18)):
        brush.box(x - 0.32, seat + top, x + 0.26, seat + bottom, wood, edge)


def _bicycle(brush: Brush, body: Body) -> None:
    x, y = body["pelvis"]
    radius = 0.155
    axle = body.ground - radius
    back, front, crank, seat = (x - 0.13, axle), (x + 0.36, axle), (x + 0.1, axle), (x, y + 0.05)
    bar = (body["near_hand"][0], body["near_hand"][1] + 0.02)
    for hub in (back, front):
        brush.ellipse(*hub, radius, radius, None, (30, 30, 34), 0.025)
        for degrees in range(0, 180, 45):
            spoke = [_around(*hub, length, degrees) for length in (-0.9 * radius, 0.9 * radius)]
            brush.line(spoke, (140, 140, 146), 0.004)
    fork = _between(crank, bar, 0.85)
    for tube in ((back, crank), (crank, seat), (seat, back), (crank, bar), (seat, fork), (bar, front)):
        brush.line(tube, (200, 40, 120), 0.022)
    brush.line([(seat[0] - 0.05, seat[1]), (seat[0] + 0.05, seat[1])], (30, 30, 30), 0.03)


def _ladder(brush: Brush, body: Body) -> None:
    x = max(body["near_hand"][0], body["far_hand"][0])
    top = min(body["near_hand"][1], body["far_hand"][1]) - 0.14
    for aside in (-0.09, 0.09):
        brush.line([(x + aside, body.ground), (x + aside, top)], (192, 158, 76), 0.026)
    rung = body.ground - 0.06
    while rung > top:
        brush.line([(x - 0.09, rung), (x + 0.09, rung)], (226, 186, 90), 0.02)
        rung -= 0.09


def _board_below(brush: Brush, body: Body) -> None:
    x, _ = _between(body["near_ankle"], body["far_ankle"], 0.5)
    _board(brush, x + 0.02, body.ground - 0.045, 0)


def _puddle(brush: Brush, body: Body) -> None:
    x, y = body["far_toe"][0] + 0.05, body.ground + 0.005
    brush.ellipse(x, y, 0.26, 0.04, (120, 180, 226), (70, 130, 190), 0.012)
    brush.ellipse(x - 0.05, y - 0.01, 0.1, 0.008, (240, 250, 255))


def _football(brush: Brush, body: Body) -> None:
    x, y = max(body["near_toe"], body["far_toe"])
    _ball(brush, x + 0.1, min(body.ground - 0.065, y + 0.03))


def _ball_at_head(brush: Brush, body: Body) -> None:
    x, y = body["head"]
    up_x, up_y = _direction(body["head"], body["crown"])
    x, y = x - 0.135 * up_y + 0.03, y + 0.1 * up_x
    _impact(brush, x, y)
    _ball(brush, x, y)


def _box(brush: Brush, body: Body) -> None:
    x, y = max(body["near_hand"], body["far_hand"])
    sides = [(x - 0.09, y - 0.19), (x + 0.15, y - 0.19), (x + 0.15, y + 0.02), (x - 0.09, y + 0.02)]
    brush.polygon(sides, (196, 148, 92), (120, 84, 46), 0.012)
    brush.box(x - 0.09, y - 0.101, x + 0.15, y - 0.069, (224, 190, 140))


def _phone(brush: Brush, body: Body) -> None:
    x, y = body["near_hand"]
    brush.box(x - 0.024, y - 0.06, x + 0.024, y + 0.04, (24, 26, 32), (200, 210, 220))


def _guitar(brush: Brush, body: Body) -> None:
    x, y = _between(body["chest"], body["pelvis"], 0.78)
    x += 0.02
    end = (x + 0.36, y - 0.17)
    brush.bar((x, y), end, 0.034, 0.026, (70, 42, 26))
    brush.bar(end, (end[0] + 0.045, end[1] - 0.02), 0.05, 0.04, (50, 30, 20))
    for aside, radius in ((-0.1, 0.092), (0.035, 0.068)):
        brush.disc(x + aside, y - aside * 0.47, radius, (120, 66, 26))
        brush.disc(x + aside, y - aside * 0.47, radius * 0.9, (206, 132, 58))
    brush.disc(x - 0.02, y + 0.01, 0.03, (60, 34, 20))


def _stone(brush: Brush, body: Body) -> None:
    x, y = body["far_toe"][0], body.ground
    outline = [(x - 0.02, y), (x, y - 0.07), (x + 0.06, y - 0.1), (x + 0.13, y - 0.075), (x + 0.17, y)]
    brush.polygon(outline, (128, 124, 120), (70, 68, 66), 0.012)
    brush.line([(x + 0.04, y - 0.07), (x + 0.08, y - 0.03)], (90, 88, 86), 0.012)


def _flying_board(brush: Brush, body: Body) -> None:
    x, y = _between(body["near_ankle"], body["far_ankle"], 0.5)
    away = 1 if x > body["pelvis"][0] else -1
    _board(brush, x + away * 0.1, min(y - 0.02, body.ground - 0.2), 58 * away)


PROPS_BEHIND: dict[str, Callable[[Brush, Body], None]] = {
    "sitting": _bench,
    "cycling": _bicycle,
    "climbing": _ladder,
    "skateboarding": _board_below,
    "slipping": _puddle,
}
PROPS_IN_FRONT: dict[str, Callable[[Brush, Body], None]] = {
    "football": _football,
    "ball_hit": _ball_at_head,
    "carrying": _box,
    "phoning": _phone,
    "guitar": _guitar,
    "tripping": _stone,
    "skateboard_crash": _flying_board,
}
HANDS_IN_FRONT = {"carrying": ("near_hand",), "guitar": ("near_hand", "far_hand")}  # of what is held
CAR_COLOURS = ((178, 30, 40), (36, 70, 150), (230, 230, 232), (60, 62, 68))


def _hitting_car(brush: Brush, body: Body, rng: random.Random) -> None:
    left = body.extent()[0] - 0.56
    draw_car(brush, left, body.ground + 0.02, 1.12, rng.choice(CAR_COLOURS))
    _impact(brush, left + 1.1, body.ground - 0.2)


def _attacker(canvas: Image.Image, action: str, body: Body, rng: random.Random) -> None:
    """Another person, in dark clothes, whose hand or foot touches the person from behind."""
    skin = rng.choice(SKINS)
    sweater, trousers = Garment("sweater", (74, 78, 86)), Garment("trousers", (52, 54, 60))
    other = Figure(False, 1.0, skin, "short", (34, 30, 28), sweater, trousers, (24, 24, 26))
    pushing, kicking = ("pusher", "near_hand", 0.2), ("kicker", "near_toe", 0.85)
    pose, contact, height = pushing if action == "pushed" else kicking
    joints = skeleton(jittered_pose(POSES[pose][0], rng), other)
    shift = _between(body["chest"], body["pelvis"], height)[0] - 0.07 - joints[contact][0]
    placed = {name: (x + shift, body.ground - y) for name, (x, y) in joints.items()}
    FigurePainter(canvas, other, Body(placed, body.unit, body.ground)).paint()


# --- the image ------------------------------------------------------------------------------------------

# Room that an action's things need around the person: behind, in front, above.
MARGINS: dict[str, tuple[float, float, float]] = {
    "car_hit": (0.5, 0.0, 0.0),
    "pushed": (0.36, 0.0, 0.0),
    "kicked": (0.5, 0.0, 0.0),
    "cycling": (0.14, 0.1, 0.0),
    "football": (0.0, 0.16, 0.0),
    "guitar": (0.0, 0.2, 0.0),
    "carrying": (0.0, 0.12, 0.0),
    "ball_hit": (0.0, 0.12, 0.06),
    "skateboard_crash": (0.08, 0.08, 0.0),
    "climbing": (0.0, 0.08, 0.1),
    "sitting": (0.1, 0.0, 0.0),
}


def _placed(figure: Figure, action: str, side: int, rng: random.Random) -> Body:
    """The figure in a posture of the action, somewhere on the ground of a canvas of `side` pixels."""
    joints = skeleton(jittered_pose(rng.choice(POSES[action]), rng), figure)
    behind, front, above = MARGINS.get(action, (0.0, 0.0, 0.0))
    left = min(x for x, _ in joints.values()) - behind - 0.05
    right = max(x for x, _ in joints.values()) + front + 0.05
    top = max(y for _, y in joints.values()) + above + (0.05 if figure.headwear else 0.02)
    ground = side * rng.uniform(0.87, 0.94)
    unit = side * rng.uniform(0.66, 0.84)
    unit = min(unit, side * 0.97 / (right - left), (ground - side * 0.02) / top)
    shift = (side / unit - (right - left)) * rng.uniform(0.15, 0.85) - left
    placed = {name: (x + shift, ground / unit - y) for name, (x, y) in joints.items()}
    return Body(placed, unit, ground / unit)


def _paint_shadow(canvas: Image.Image, brush: Brush, body: Body) -> None:
    left, right = body.extent()
    middle = sum(x for x, _ in body.joints.values()) / len(body.joints)
    x, y = (min(canvas.width - 1, max(0, int(at * body.unit))) for at in (middle, body.ground + 0.03))
    shadow = shade(cast(Colour, canvas.getpixel((x, y))), 0.72)
    brush.ellipse(middle, body.ground + 0.004, (right - left) / 2 + 0.03, 0.026, shadow)


def _recede(canvas: Image.Image) -> None:
    """Makes what is painted so far a background, as a camera does: paler and out of focus."""
    pale = Image.blend(canvas, Image.new("RGB", canvas.size, HAZE), 0.35)
    canvas.paste(pale.filter(ImageFilter.BoxBlur(0.005 * canvas.width)))


def draw_image(
    figure: Figure, action: str, scene: str, sky: str, *, scene_seed: int, rng: random.Random, image_size: int
) -> Image.Image:
    """An (image_size, image_size) RGB image of the figure doing `action` (a key of `POSES`) in `scene`.

    `scene_seed` fixes the scene's details, so that two images can show one place; pose, size, position,
    light and mirroring come from `rng`. ValueError for an action, scene or sky that cannot be drawn.
    """
    if action not in POSES or scene not in SCENES or sky not in SKIES:
        raise ValueError(f"cannot draw action {action!r} in scene {scene!r} under sky {sky!r}")
    side = image_size * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(canvas)
    horizon = random.Random(scene_seed).uniform(0.46, 0.54) + rng.uniform(-0.015, 0.015)
    SCENES[scene](Stage(draw, side, horizon, random.Random(scene_seed + 1), sky))
    _recede(canvas)

    body = _placed(figure, action, side, rng)
    brush = Brush(draw, body.unit)
    _paint_shadow(canvas, brush, body)
    if action in PROPS_BEHIND:
        PROPS_BEHIND[action](brush, body)
    elif action == "car_hit":
        _hitting_car(brush, body, rng)
    elif action in ("pushed", "kicked"):
        _attacker(canvas, action, body, rng)
    FigurePainter(canvas, figure, body).paint()
    if action in PROPS_IN_FRONT:
        PROPS_IN_FRONT[action](brush, body)
    for hand in HANDS_IN_FRONT.get(action, ()):
        brush.disc(*body[hand], 0.026, figure.skin)

    image = canvas.reduce(SUPERSAMPLING)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    noise = np.random.default_rng(rng.getrandbits(64))
    grain = noise.integers(-5, 6, (image_size, image_size, 1), dtype=np.int16)
    light = rng.uniform(0.9, 1.08)
    pixels = (np.asarray(image, dtype=np.float32) * light).astype(np.int16) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
