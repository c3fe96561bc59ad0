"""Whatever a person wears and does, the image shows it, and a skeleton stays a skeleton."""

import itertools
import math
import random

import numpy as np
import pytest

from tpas.data.drawn.figure_drawing import (
    POSES,
    UPPER_SHAPES,
    Figure,
    Garment,
    draw_image,
    jittered_pose,
    skeleton,
)
from tpas.data.drawn.synthetic_worlds import WORLDS

MAGENTA, CYAN = (255, 0, 255), (0, 255, 255)
ACTIONS = sorted(set(POSES) - {"kicker", "pusher"})


def person(upper: str = "t-shirt", colour=MAGENTA, pattern: str = "plain", **others) -> Figure:
    settings = {
        **{"woman": False, "stoutness": 1.0, "skin": (226, 182, 146), "shoes": (200, 200, 200)},
        **{"hair_style": "short", "hair_colour": (60, 40, 30), "upper": Garment(upper, colour, pattern)},
        "lower": None if upper == "dress" else Garment("trousers", (40, 40, 44)),
    }
    return Figure(**(settings | others))


def draw(figure: Figure, action: str = "standing", scene: str = "lawn", seed: int = 0) -> np.ndarray:
    image = draw_image(figure, action, scene, "clear", scene_seed=7, rng=random.Random(seed), image_size=96)
    assert (image.mode, image.size) == ("RGB", (96, 96))
    return np.asarray(image).astype(int)


def changed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where two images of the same random draws differ."""
    return (np.abs(first - second) > 24).any(axis=2)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_upper_garment_is_well_visible_in_every_action(action):
    for seed in range(4):
        seen = changed(draw(person(), action, seed=seed), draw(person(colour=CYAN), action, seed=seed))
        assert 0.012 < seen.mean() < 0.25


@pytest.mark.parametrize("action", ACTIONS)
def test_a_person_fills_much_of_the_image_and_lies_inside_it(action):
    def coloured(colour) -> Figure:
        lower = Garment("trousers", colour)
        return person(colour=colour, skin=colour, shoes=colour, hair_colour=colour, lower=lower)

    for seed in range(4):
        seen = changed(*(draw(coloured(colour), action, seed=seed) for colour in (MAGENTA, CYAN)))
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        # One hit by a car or kicked by another person shares the image with them.
        assert 0.36 * 96 <= longest <= 0.97 * 96
        assert rows[-1] < 95
        assert columns[0] > 0 or columns[-1] < 95


def test_each_upper_shape_pattern_and_addition_looks_different():
    looks = {shape: person(shape) for shape in UPPER_SHAPES}
    looks |= {pattern: person(pattern=pattern) for pattern in ("striped", "checked", "dotted")}
    lowers = ("trousers", "shorts", "skirt", "leggings", "jeans", "joggers")
    looks |= {lower: person(lower=Garment(lower, CYAN)) for lower in lowers}
    looks |= {hat: person(headwear=Garment(hat, CYAN)) for hat in ("cap", "beanie", "sun hat", "helmet")}
    things = ("backpack", "shoulder bag", "handbag", "balloon")
    looks |= {thing: person(carried=Garment(thing, CYAN)) for thing in things}
    styles = ("bald", "long", "bun", "ponytail", "afro", "mohawk")
    looks |= {style: person(hair_style=style) for style in styles}
    looks["woman"] = person(woman=True)
    images = {name: draw(look) for name, look in looks.items()}
    for (name, image), (other, other_image) in itertools.combinations(images.items(), 2):
        assert changed(image, other_image).sum() >= 12, (name, other)


def test_scenes_are_told_apart_by_their_colours():
    named = [scene for world in WORLDS.values() for scene in world.scenes if not scene.made_up]
    assert len(named) == 16
    images = {scene.name: draw(person(), scene=scene.name) for scene in named}
    for (name, image), (other, other_image) in itertools.combinations(images.items(), 2):
        assert changed(image, other_image).mean() > 0.3, (name, other)


def test_an_image_depends_on_its_seeds_alone():
    first, again, another = (draw(person(), "falling_forward", seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, another)


def test_bones_keep_their_length_and_feet_their_ground_in_every_pose():
    bones = {("shoulder", "elbow"): 0.15, ("elbow", "hand"): 0.145}
    bones |= {("hip", "knee"): 0.225, ("knee", "ankle"): 0.22}
    rng = random.Random(0)
    for pose in itertools.chain.from_iterable(POSES.values()):
        moved = jittered_pose(pose, rng)
        joints = skeleton(moved, person())
        for side in ("near", "far"):
            for (start, end), length in bones.items():
                assert math.dist(joints[f"{side}_{start}"], joints[f"{side}_{end}"]) == pytest.approx(length)
        assert math.dist(joints["pelvis"], joints["chest"]) == pytest.approx(0.29)
        assert moved.lift <= min(y for _, y in joints.values()) <= moved.lift + 0.09


def test_one_who_stands_is_upright_and_one_who_lies_is_flat():
    (upright, _), (flat, *_) = POSES["standing"], POSES["lying"]
    joints = skeleton(upright, person())
    assert joints["crown"][1] == pytest.approx(0.98, abs=0.05)
    assert joints["pelvis"][1] > joints["near_knee"][1] > joints["near_ankle"][1]
    joints = skeleton(flat, person())
    assert joints["crown"][1] < 0.2
    assert joints["crown"][0] - joints["near_ankle"][0] == pytest.approx(0.95, abs=0.05)


@pytest.mark.parametrize("unknown", ["action", "scene", "sky"])
def test_what_cannot_be_drawn_is_named(unknown):
    named = {"action": "standing", "scene": "lawn", "sky": "clear"} | {unknown: "flying"}
    with pytest.raises(ValueError, match="flying"):
        draw_image(person(), **named, scene_seed=0, rng=random.Random(0), image_size=64)


def test_unknown_patterns_and_headwear_are_named():
    with pytest.raises(ValueError, match="tartan"):
        draw(person(pattern="tartan"))
    with pytest.raises(ValueError, match="crown"):
        draw(person(headwear=Garment("crown", CYAN)))
