"""Keeps the few most different, sharp views of a person, as the person walks by, and where the person was."""

import io
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from .films import Frame
from .motion import imported_opencv

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the whole frame
MOST_VIEWS = 4
EVERY_S = 0.5  # a person is looked at for a view
SAME = 14.0  # grey values between small copies, below which two views show the same
FRAME_SIDE = 640  # pixels of the longest side of the whole frame that is kept with a view
QUALITY = 90
TRAIL_EVERY_S = 0.5  # where a person is, is noted
TRAIL_OFF = 0.04  # of the person's height, by which a line between two notes may miss those left out
LONGEST_LINE_S = 10.0


@dataclass(frozen=True, eq=False)
class View:
    """A person as seen at one time.

    Attributes:
        time_s: of the film.
        box: of the person in the whole frame.
        crop: the person with a margin, JPEG.
        frame: the whole frame, small, JPEG.
        sharpness: variance of the crop's Laplacian; higher is sharper.
        small: (24, 12, 3), what views are compared by.
        is_whole: the person touches neither the frame's border nor another person.
    """

    time_s: float
    box: Box
    crop: bytes = field(repr=False)
    frame: bytes = field(repr=False)
    sharpness: float
    small: np.ndarray = field(repr=False)
    is_whole: bool
    size: tuple[int, int] = (0, 0)  # width and height of the whole frame
    within: tuple[int, int, int, int] = (0, 0, 0, 0)  # the person's box in the crop

    @property
    def worth(self) -> tuple[bool, float]:
        """What a view is preferred by: a whole person, then size and sharpness together."""
        left, top, right, bottom = self.box
        return self.is_whole, self.sharpness * (right - left) * (bottom - top)

    def person(self) -> Image.Image:
        """Without the margin, in which somebody else may be."""
        return self.image().crop(self.within)

    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.crop)).convert("RGB")


class Views:
    """The views of one person that are kept: never more than `most`, whatever the visit's length.

    Args:
        margin: around the person on each side, in shares of the person's height: texts speak of the scene.
    """

    def __init__(self, most: int = MOST_VIEWS, margin: float = 0.25):
        self.most = most
        self.margin = margin
        self.kept: list[View] = []
        self.looked_s = -float("inf")

    def offer(self, frame: Frame, box: Box, is_whole: bool) -> None:
        """Looks at the person, if it is time to, and keeps the view if it is better or another one."""
        if frame.time_s - self.looked_s < EVERY_S and self.kept:
            return
        self.looked_s = frame.time_s
        view = seen_in(frame, box, self.margin, is_whole)
        if self.add(view):
            self.kept[self.kept.index(view)] = with_pictures(view, frame, self.margin)

    def add(self, view: View) -> bool:
        """Whether it is kept."""
        distances = [difference(view, other) for other in self.kept]
        if distances and min(distances) < SAME:
            same = int(np.argmin(distances))
            if view.worth > self.kept[same].worth:
                self.kept[same] = view
        elif len(self.kept) < self.most:
            self.kept.append(view)
        else:
            self._replace(view, distances)
        return view in self.kept

    def _replace(self, view: View, distances: list[float]) -> None:
        """Takes the place of one of the two that are most alike, where it differs more from all."""
        pairs = [
            (difference(a, b), i, j) for i, a in enumerate(self.kept) for j, b in enumerate(self.kept[:i])
        ]
        if not pairs:
            if view.worth > self.kept[0].worth:
                self.kept[0] = view
            return
        least, first, second = min(pairs)
        if (
            view.is_whole >= min(self.kept[first].is_whole, self.kept[second].is_whole)
            and min(distances) > least
        ):
            worse = first if self.kept[first].worth < self.kept[second].worth else second
            self.kept[worse] = view

    def take(self, other: "Views") -> None:
        """Adds those of another piece of the same visit."""
        for view in other.kept:
            self.add(view)

    def best_first(self) -> list[View]:
        """Without those of half a person, unless there are no others."""
        ordered = sorted(self.kept, key=lambda view: view.worth, reverse=True)
        whole = [view for view in ordered if view.is_whole]
        return whole or ordered


class Trail:
    """Where somebody was, in few boxes: between two of them a straight line says it nearly as well."""

    def __init__(self) -> None:
        self.kept: list[tuple[float, Box]] = []
        self.since: list[tuple[float, Box]] = []  # the last one kept; the last of them is kept in the end

    def add(self, time_s: float, box: Box) -> None:
        last_s = (self.since or self.kept or [(-float("inf"), box)])[-1][0]
        if time_s - last_s < TRAIL_EVERY_S:
            return
        if not self.kept:
            self.kept.append((time_s, box))
            return
        begin, end = self.kept[-1], (time_s, box)
        off = TRAIL_OFF * max(1.0, box[3] - box[1])
        if time_s - begin[0] > LONGEST_LINE_S or any(
            abs(edge - on_line) > off
            for at_s, there in self.since
            for edge, on_line in zip(there, box_at(at_s, begin, end), strict=True)
        ):
            self.kept += self.since[-1:]
            self.since.clear()
        self.since.append(end)

    def take(self, other: "Trail") -> None:
        """Goes on with that of a later piece of the same visit."""
        self.kept += self.since[-1:] + other.kept
        self.since = other.since

    def until(self, time_s: float, box: Box) -> tuple[tuple[float, Box], ...]:
        """All of it, to the last sight."""
        before = sorted(pair for pair in self.kept + self.since[-1:] if pair[0] < time_s)
        return *before, (time_s, box)


def box_at(time_s: float, before: tuple[float, Box], after: tuple[float, Box]) -> Box:
    """Where somebody was between two times, along a straight line."""
    share = (time_s - before[0]) / max(after[0] - before[0], 1e-6)
    return tuple(a + share * (b - a) for a, b in zip(before[1], after[1], strict=True))  # type: ignore[return-value]


def view_of(frame: Frame, box: Box, margin: float, is_whole: bool = True) -> View:
    """The view of a person in a frame."""
    return with_pictures(seen_in(frame, box, margin, is_whole), frame, margin)


def seen_in(frame: Frame, box: Box, margin: float, is_whole: bool) -> View:
    """The same without its pictures, which take longest."""
    cv2 = imported_opencv()
    left, top, right, bottom = box
    first, above, last, below = surroundings(box, margin, frame.width, frame.height)
    within = max(0, int(left)), max(0, int(top)), round(right), round(bottom)
    person = frame.image()[
        within[1] : max(within[3], within[1] + 1), within[0] : max(within[2], within[0] + 1)
    ]
    small = cv2.resize(person, (12, 24), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(cv2.resize(person, (64, 128), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    return View(
        frame.time_s,
        box,
        b"",
        b"",
        float(cv2.Laplacian(grey, cv2.CV_32F).var()),
        small.astype(np.float32),
        is_whole,
        (frame.width, frame.height),
        (within[0] - first, within[1] - above, min(last, within[2]) - first, min(below, within[3]) - above),
    )


def with_pictures(view: View, frame: Frame, margin: float) -> View:
    cv2 = imported_opencv()
    image = whole = frame.image()
    first, above, last, below = surroundings(view.box, margin, frame.width, frame.height)
    longest = max(frame.width, frame.height)
    if longest > FRAME_SIDE:
        size = round(frame.width * FRAME_SIDE / longest), round(frame.height * FRAME_SIDE / longest)
        whole = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return replace(view, crop=jpeg(image[above:below, first:last]), frame=jpeg(whole))


def surroundings(box: Box, margin: float, width: int, height: int) -> tuple[int, int, int, int]:
    """The person with a margin, as nearly a square as the picture allows: models see squares."""
    left, top, right, bottom = box
    side = max(1, round((1 + 2 * margin) * max(bottom - top, right - left)))
    across, down = min(side, width), min(side, height)
    first = int(min(max(0.0, (left + right - across) / 2), width - across))
    above = int(min(max(0.0, (top + bottom - down) / 2), height - down))
    return first, above, first + across, above + down


def jpeg(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def difference(view: View, other: View) -> float:
    """The mean difference of small copies, in grey values."""
    return float(np.abs(view.small - other.small).mean())
