"""Finds what moves, or has come and stands still, before a fixed camera: a person in whatever posture.

Needs no weights. opencv's mixture of Gaussians says what differs from the background, and what is found is
kept out of the background's learning, so that somebody who stands or lies still stays found. What stays and
is no more than a place that was left (the chair that was moved, the sleeper who got up) shows its outline in
the learnt background and not in the image: that is learnt at once.
"""

import math
from typing import Any

import numpy as np

from .films import Frame

LONGEST_SIDE = 352  # pixels of the image that is looked at
LEARNS_IN_S = 30.0  # what the background takes over a change of light in
SMALLEST_PERSON = 0.0006  # of the image's area; a person of 16 x 36 pixels in 768 x 576 is 0.0013
LEARNS_EVERY_S = 0.2
WIDEST = 6.0  # times as wide as high: somebody who lies with arms stretched out is 5
MOST_GAIN = 1.7  # of the light, before the background is learnt anew
LIGHT_CHANGED = 0.75  # of the image's area: no person, but lights or a camera that was moved
QUIET_S = 3.0  # without any change inside, before what is found may be a place that was left
LEFT_EDGES = 1.6  # times as much outline in the background as in the image
CHANGED = 12  # grey values between two frames
NO_EDGE = 8.0  # of outline, in grey values of a Sobel filter: that of noise
OTHER_COLOUR = 1.3  # times as much of one colour as of another that a light changes
OTHER_LIGHT, OTHER_TEXTURE = (
    50.0,
    9.0,
)  # grey values: how far light and shadow go, and what they leave as it was


class MotionDetector:
    """The boxes of people by motion, frame after frame of one camera.

    Args:
        still_s: after which something that has not changed at all is taken for a thing that was left there.
    """

    def __init__(self, still_s: float = 600.0):
        self.cv2 = imported_opencv()
        self.cv2.setNumThreads(min(2, self.cv2.getNumThreads()))
        self.still_s = still_s
        self.forget()

    def forget(self) -> None:
        """Begins anew, as before another film."""
        self.background = self.cv2.createBackgroundSubtractorMOG2(varThreshold=20, detectShadows=True)
        self.frames = 0
        self.time_s = 0.0
        self.grey: np.ndarray | None = None
        self.quiet: np.ndarray | None = None  # seconds without a change, by pixel
        self.learnt: np.ndarray | None = None  # the background as an image
        self.held: np.ndarray | None = None  # what it does not learn
        self.unlearnt_s = 0.0

    def boxes(self, frame: Frame) -> np.ndarray:
        """(n, 4): left, top, right and bottom of each, in pixels of the whole frame."""
        cv2 = self.cv2
        small = frame.image(LONGEST_SIDE)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        step_s = max(frame.time_s - self.time_s, 0.0)
        self.time_s = frame.time_s
        self.frames += 1
        if self.grey is None or self.quiet is None or self.grey.shape != grey.shape:
            self.quiet = np.zeros(grey.shape, np.float32)
            self.grey = grey
            self.background.apply(small)
            return np.empty((0, 4), np.float32)
        changed = cv2.threshold(cv2.absdiff(grey, self.grey), CHANGED, 255, cv2.THRESH_BINARY)[1]
        changed = cv2.erode(changed, None)  # noise of single pixels
        self.quiet += step_s
        self.quiet[changed > 0] = 0.0
        self.grey = grey
        self.unlearnt_s += step_s
        if self.learnt is None or self.frames % 5 == 0:
            self.learnt = self.background.getBackgroundImage()
        small = self._as_learnt(small)

        found = self.background.apply(small, learningRate=0)
        mask = cv2.threshold(found, 200, 255, cv2.THRESH_BINARY)[1]  # 127 is shadow
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((9, 5), np.uint8))
        if cv2.countNonZero(mask) > LIGHT_CHANGED * mask.size:
            self.background.apply(small, learningRate=0.5)
            self.learnt = self.held = None
            return np.empty((0, 4), np.float32)
        return self._people(frame, small, mask)

    def _as_learnt(self, small: np.ndarray) -> np.ndarray:
        """The image as it would be in the background's light: a camera opens its iris for dark clothes."""
        assert self.learnt is not None
        sparse = (slice(2, None, 5), slice(2, None, 5))
        free = np.ones_like(small[sparse][..., 0], bool) if self.held is None else self.held[sparse] == 0
        if np.count_nonzero(free) < 50:
            return small
        was, now = (
            self.learnt[sparse][free].astype(np.float32) + 1,
            small[sparse][free].astype(np.float32) + 1,
        )
        gains = np.clip(np.median(was / now, axis=0), 1 / MOST_GAIN, MOST_GAIN)
        if np.abs(gains - 1).max() < 0.01:
            return small
        steps = np.arange(256, dtype=np.float32)[:, None] * gains  # (256, 3)
        return self.cv2.LUT(small, np.clip(np.rint(steps), 0, 255).astype(np.uint8)[None])

    def _people(self, frame: Frame, small: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The boxes of what differs; the background learns everything else."""
        cv2 = self.cv2
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
        smallest = SMALLEST_PERSON * mask.size
        held, none = np.zeros_like(mask), np.zeros_like(mask)
        boxes, areas = [], []
        for number in range(1, count):
            x, y, width, height, area = stats[number].tolist()
            if area < smallest / 4:
                continue
            place = slice(max(0, y - 2), y + height + 2), slice(max(0, x - 2), x + width + 2)
            part = labels[place] == number
            if self._is_none(part, small[place], self.learnt[place], self.quiet[place]):  # type: ignore[index]
                none[place][part] = 255
                continue
            held[place][part] = 255
            boxes.append([x, y, x + width, y + height])
            areas.append(area)
        self.held = cv2.dilate(held, np.ones((5, 5), np.uint8))
        if self.unlearnt_s >= LEARNS_EVERY_S or self.frames < 20:
            rate = max(1 / self.frames, 1 - math.exp(-self.unlearnt_s / LEARNS_IN_S))
            self.background.apply(small, self.held, None, rate)
            self.unlearnt_s = 0.0
        if none.any():
            self.background.apply(small, 255 - cv2.dilate(none, None), None, 0.3)
        people = [box for box, area in _joined(boxes, areas) if area >= smallest]
        boxes = [box for box in people if box[2] - box[0] <= WIDEST * (box[3] - box[1])]
        scale = frame.width / small.shape[1], frame.height / small.shape[0]
        return np.array(boxes, np.float32).reshape(-1, 4) * np.array([*scale, *scale], np.float32)

    def _is_none(self, part: np.ndarray, now: np.ndarray, learnt: np.ndarray, quiet: np.ndarray) -> bool:
        """Whether what differs from the background there is a light, a shadow, or a place that was left.

        Args:
            part: (h, w) what differs, of the place that the others show: (h, w, 3) images, (h, w) seconds.
        """
        cv2, mask = self.cv2, part.astype(np.uint8)

        def both_edges() -> tuple[float, float]:
            """How much outline there is in the image, and how much in the background."""
            outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))
            return tuple(cv2.mean(_edges(cv2, image), outline)[0] for image in (grey, was_grey))  # type: ignore[return-value]

        grey, was_grey = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (now, learnt))
        colour, was_colour = (np.array(cv2.mean(image, mask)[:3]) + 1 for image in (now, learnt))
        shares = colour / was_colour
        if np.abs(colour - was_colour).max() < OTHER_LIGHT and shares.max() < OTHER_COLOUR * shares.min():
            # Under another light the texture stays, and no outline comes with it; with a person both do.
            there, was = grey[part].astype(np.float32), was_grey[part].astype(np.float32)
            there -= there.mean()
            was -= was.mean()
            gain = float(there @ was) / max(float(was @ was), 1.0)
            rest = float(np.sqrt(np.mean((there - gain * was) ** 2)))
            if float(was.std()) > 2.5 * rest and 0.4 < gain < 2.5:
                return True
            if rest < OTHER_TEXTURE:
                edges, were = both_edges()
                if edges / max(gain, 0.5) < 1.25 * were + NO_EDGE:
                    return True
        calm = quiet[part]
        if np.count_nonzero(calm <= QUIET_S) > 0.05 * calm.size + 2:  # as below, and sooner
            return False
        calm_s = float(np.percentile(calm, 5))
        if calm_s > self.still_s:
            return True
        edges, were = both_edges()
        return calm_s > QUIET_S and were > LEFT_EDGES * edges


def _joined(boxes: list[list[int]], areas: list[int]) -> list[tuple[list[int], int]]:
    """Boxes and areas, the pieces of one person made one: head on trunk, trunk on legs, a hand beside.

    A garment of the background's colour cuts a person in two.
    """
    order = sorted(range(len(boxes)), key=lambda number: -areas[number])
    people: list[tuple[list[int], int]] = []
    for number in order:
        left, top, right, bottom = boxes[number]
        for place, (box, area) in enumerate(people):
            across = min(box[2], right) - max(box[0], left)
            apart = max(box[1], top) - min(box[3], bottom)
            height, width = box[3] - box[1], box[2] - box[0]
            is_head = right - left < 0.7 * width and areas[number] < 0.35 * area
            stacked = across >= 0.5 * min(width, right - left) and apart <= (0.4 if is_head else 0.1) * height
            beside = across >= -0.15 * width and apart <= 0 and areas[number] < 0.25 * area
            whole = [min(box[0], left), min(box[1], top), max(box[2], right), max(box[3], bottom)]
            slender = whole[3] - whole[1] <= max(4.5 * (whole[2] - whole[0]), 1.2 * height)
            if (stacked and slender) or beside:
                people[place] = whole, area + areas[number]
                break
        else:
            people.append((boxes[number], areas[number]))
    return people


def _edges(cv2: Any, grey: np.ndarray) -> np.ndarray:
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    return np.abs(across) + np.abs(down)


def imported_opencv() -> Any:
    """opencv.

    Raises:
        ImportError: with the way out.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(f"films need the extra `footage`: pip install -e '.[footage]' ({error})") from error
    return cv2
