"""People are followed through crossings, standing still and out of sight; what is no person is left out."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from tiny_films import walkers

from tpas.footage.following import Follower
from tpas.footage.motion import MotionDetector
from tpas.footage.views import box_at

RED, BLUE, GREEN = (220, 30, 30), (30, 30, 220), (30, 200, 30)
SIZE = (160, 120)


@dataclass
class Shown:
    """A frame that is there already."""

    time_s: float
    pixels: np.ndarray
    number: int = 0

    @property
    def width(self):
        return self.pixels.shape[1]

    @property
    def height(self):
        return self.pixels.shape[0]

    def image(self, longest=None):
        return self.pixels


def by_colour(images):
    """Appearance: the mean of what is colourful, as a unit vector."""
    rows = []
    for image in images:
        pixels = np.asarray(image).reshape(-1, 3).astype(float)
        colour = pixels[np.ptp(pixels, axis=1) > 80].mean(axis=0)
        rows.append(colour / np.linalg.norm(colour))
    return np.array(rows)


def followed(boxes, colours=(RED, BLUE, GREEN), appearance=by_colour, **settings):
    """The visits of walkers whose boxes a detector finds, ten times a second."""
    follower = Follower(10, appearance, **settings)
    visits = []
    times = [number / 10 for number in range(len(boxes))]
    for time_s, image, at in zip(times, walkers(times, boxes, colours, SIZE), boxes, strict=True):
        found = np.array(list(at.values()), np.float32).reshape(-1, 4)
        visits += follower.update(Shown(time_s, image), found)
    return visits + follower.finish()


def colour_of(visit):
    """Of the person in each of a visit's views."""
    return {int(np.argmax(by_colour([view.person()])[0])) for view in visit.views}


def walk(start, step, frames, top=30):
    return [(start + step * number, top, start + step * number + 16, top + 50) for number in range(frames)]


def test_one_visit_from_first_to_last_sight_with_few_views():
    standing = [(70, 30, 86, 80)] * 300
    (visit,) = followed([{}] * 5 + [{0: box} for box in walk(20, 2, 25) + standing + walk(70, 2, 20)])
    assert visit.start_s == pytest.approx(0.6, abs=0.11)
    assert visit.end_s == pytest.approx(0.5 + 34.4, abs=0.11)
    assert 1 <= len(visit.views) <= 4
    left, top, right, bottom = visit.views[0].box
    assert (right - left, bottom - top) == (16, 50)
    assert visit.views[0].image().size == (75, 75)  # one and a half times the person's height, square


def test_few_boxes_say_where_somebody_was_all_the_time():
    way = walk(20, 2, 25) + [(70, 30, 86, 80)] * 300 + walk(70, -2, 20)
    (visit,) = followed([{0: box} for box in way])
    assert len(visit.boxes) < 50  # of 345
    assert [visit.boxes[0][0], visit.boxes[-1][0]] == [visit.start_s, visit.end_s]
    for (since, box), (until, there) in itertools.pairwise(visit.boxes):
        for number in range(round(since * 10), round(until * 10)):
            shown = box_at(number / 10, (since, box), (until, there))
            assert shown == pytest.approx(way[number], abs=8)  # half a second's walk, where somebody turns


@pytest.mark.parametrize("pause", [0, 8])
def test_who_cross_are_not_swapped(pause):
    """Two walk into each other, stay together for a while, and go back where they came from, or on."""
    for goes_on in (True, False):
        first = walk(10, 3, 20) + [(67, 30, 83, 80)] * pause
        second = walk(134, -3, 20) + [(77, 30, 93, 80)] * pause
        if goes_on:
            first, second = first + walk(67, 3, 22), second + walk(77, -3, 22)
        else:
            first, second = first + walk(67, -3, 20), second + walk(77, 3, 20)
        together = [{0: one, 1: other} for one, other in zip(first, second, strict=True)]
        visits = followed([{}] * 2 + together)
        assert len(visits) == 2, (goes_on, visits)
        assert sorted(map(sorted, map(colour_of, visits))) == [
            [0],
            [2],
        ]  # red in all views of one, blue of the other
        assert [visit.end_s - visit.start_s for visit in visits] == pytest.approx(
            [len(first) / 10] * 2, abs=0.35
        )


def test_one_who_was_out_of_sight_goes_on_if_it_looks_the_same():
    def seen(colour):
        before, after = walk(20, 2, 20), walk(72, 2, 25)  # behind a pillar for two seconds
        return [{0: box} for box in before] + [{}] * 20 + [{colour: box} for box in after] + [{}] * 5

    (visit,) = followed(seen(0))
    assert (visit.start_s, visit.end_s) == pytest.approx((0.1, 6.4), abs=0.11)
    first, second = followed(seen(1))
    assert first.end_s < 2.1 < 3.9 < second.start_s


def test_a_piece_of_a_person_and_what_never_moves_are_no_visits():
    whole = walk(20, 2, 40)
    piece = [(left + 4, top - 8, right - 4, top) for left, top, right, _ in whole]  # a hat above
    (visit,) = followed([{0: box, 1: hat} for box, hat in zip(whole, piece, strict=True)])
    assert visit.end_s - visit.start_s == pytest.approx(3.8, abs=0.2)
    assert not followed([{2: (100, 40, 120, 80)}] * 40, must_move=True)
    assert len(followed([{2: (100, 40, 120, 80)}] * 40)) == 1  # a detector knows that it is somebody


def test_motion_keeps_finding_who_lies_still_and_forgets_a_place_that_was_left():
    """Somebody walks in, lies stretched out for longer than any background is learnt in, and goes."""
    lying = [(35, 70, 115, 86)] * 600
    boxes = (
        [{}] * 20 + [{0: box} for box in walk(0, 2, 20, top=36) + lying + walk(60, 3, 33, top=36)] + [{}] * 60
    )
    times = [number / 10 for number in range(len(boxes))]
    motion = MotionDetector()
    found = [
        motion.boxes(Shown(time_s, image))
        for time_s, image in zip(times, walkers(times, boxes, [RED], SIZE), strict=True)
    ]
    present = [number for number, at in enumerate(boxes) if at]
    assert sum(len(found[number]) == 1 for number in present) > 0.98 * len(present)
    left, top, right, bottom = found[500][0]
    assert (left, top, right, bottom) == pytest.approx((35, 70, 115, 86), abs=4)
    assert not any(len(at) for at in found[-50:])
    assert not any(len(at) for at in found[:20])


def test_another_light_is_nobody():
    times = [number / 10 for number in range(100)]
    images = walkers(times, [{}] * 100, [RED], SIZE)
    motion = MotionDetector()
    found = []
    for number, (time_s, image) in enumerate(zip(times, images, strict=True)):
        lit = image.astype(np.float32)
        lit[:, :70] *= 1.0 if number < 50 else 1.25  # a lamp is switched on over a part of it
        found.append(len(motion.boxes(Shown(time_s, np.clip(lit, 0, 255).astype(np.uint8)))))
    assert sum(found) == 0
