import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import BertTokenizer

from tpas.processing_tpas import TPASProcessor
from tpas.training.image_augmentation import (
    CLIP_MEAN,
    FILL,
    OPERATIONS,
    Augmentation,
    erase_rectangle,
    rand_augment,
    random_box,
)

SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255  # the whole range, so that AutoContrast has nothing to do
    return Image.fromarray(pixels)


def apply(name: str, image: Image.Image, strength: float, seed: int = 0) -> np.ndarray:
    return np.asarray(OPERATIONS[name](image, strength, random.Random(seed))).astype(float)


def test_augmentation_is_rgb_of_the_size_and_depends_on_the_generator_alone():
    augment = Augmentation(32)
    image = noise(50, 70)
    before = image.tobytes()
    first, _ = augment(image, random.Random(1))
    assert (first.size, first.mode) == ((32, 32), "RGB")
    assert first.tobytes() == augment(image, random.Random(1))[0].tobytes()
    assert len({augment(image, random.Random(seed))[0].tobytes() for seed in range(8)}) == 8
    assert image.tobytes() == before


@pytest.mark.parametrize("crop_probability", [0.0, 1.0])
def test_a_rectangle_is_filled_by_the_crop_and_by_the_whole_image(crop_probability):
    """48 pixels high and 16 wide; without colours changed, by the box that is drawn first."""
    image, rng = noise(50, 70), random.Random(3)
    settings = {"flip_probability": 0.0, "operations": 0, "erasing_probability": 0.0}
    augmented, _ = Augmentation((48, 16), crop_probability=crop_probability, **settings)(image, rng)
    box = random_box(50, 70, SCALE, RATIO, random.Random(3)) if crop_probability else None
    assert augmented.size == (16, 48)
    assert augmented.tobytes() == image.resize((16, 48), Image.Resampling.BICUBIC, box=box).tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_options_that_are_off_draw_nothing(seed):
    """Crop, mirror, RandAugment and no more draws: a resumed run sees what it would have seen."""
    image = noise(50, 70)
    rng, expected_rng = random.Random(seed), random.Random(seed)
    augmented, mirrored = Augmentation(32)(image, rng)
    box = random_box(50, 70, SCALE, RATIO, expected_rng)
    expected = image.resize((32, 32), Image.Resampling.BICUBIC, box=box)
    flip = expected_rng.random() < 0.5
    if flip:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = rand_augment(expected, 2, 7, expected_rng)
    assert mirrored == flip
    assert augmented.tobytes() == expected.tobytes()
    assert rng.getstate() == expected_rng.getstate()


@given(width=st.integers(1, 600), height=st.integers(1, 600), seed=st.integers(0, 1000))
def test_crop_lies_inside_the_image(width, height, seed):
    left, top, right, bottom = random_box(width, height, SCALE, RATIO, random.Random(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crop_keeps_the_asked_share_and_shape():
    shares, ratios = [], []
    for seed in range(500):
        left, top, right, bottom = random_box(400, 400, SCALE, RATIO, random.Random(seed))
        shares.append((right - left) * (bottom - top) / 400**2)
        ratios.append((right - left) / (bottom - top))
    # Rounding to pixels moves both by less than 1 %.
    assert 0.495 < min(shares) < 0.52
    assert 0.93 < max(shares) < 1.0
    assert 0.745 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.34
    assert np.mean(np.log(ratios)) == pytest.approx(0, abs=0.02)  # as often wide as high


def test_an_image_too_narrow_for_any_crop_gives_its_centre():
    assert random_box(1000, 12, SCALE, RATIO, random.Random(0)) == (492, 0, 508, 12)  # 12 * 4 / 3 = 16 wide
    assert random_box(12, 1000, SCALE, RATIO, random.Random(0)) == (0, 492, 12, 508)  # 12 / (3 / 4) = 16 high


def test_a_mirrored_image_is_reported():
    image = noise(9, 9)
    augment = Augmentation(9, scale=(1, 1), ratio=(1, 1), operations=0)
    results = [augment(image, random.Random(seed)) for seed in range(400)]
    for augmented, mirrored in results:
        pixels = np.asarray(image)[:, ::-1] if mirrored else np.asarray(image)
        np.testing.assert_array_equal(np.asarray(augmented), pixels)
    assert 160 < sum(mirrored for _, mirrored in results) < 240
    for probability in (0.0, 1.0):
        augment = Augmentation(9, flip_probability=probability)
        assert {augment(image, random.Random(seed))[1] for seed in range(50)} == {probability == 1.0}


def test_the_crop_gate_shows_the_whole_image_as_often_as_asked():
    image = noise(40, 60)
    whole = image.resize((32, 32), Image.Resampling.BICUBIC).tobytes()
    shares = {}
    for probability in (0.0, 0.3, 1.0):
        augment = Augmentation(32, crop_probability=probability, flip_probability=0, operations=0)
        seen = [augment(image, random.Random(seed))[0].tobytes() for seed in range(400)]
        shares[probability] = 1 - seen.count(whole) / 400
    assert shares[0.0] == 0
    assert shares[0.3] == pytest.approx(0.3, abs=0.06)
    assert shares[1.0] > 0.99


def test_erasing_hides_one_rectangle_of_the_asked_share_and_shape():
    image = Image.new("RGB", (200, 200), (1, 2, 3))
    before = image.tobytes()
    shares, ratios, centres = [], [], []
    for seed in range(400):
        changed = (np.asarray(erase_rectangle(image, random.Random(seed))) == CLIP_MEAN).all(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert changed.sum() == height * width  # one rectangle, nothing else
        shares.append(height * width / 200**2)
        ratios.append(width / height)
        centres.append((rows.mean(), columns.mean()))
    assert 0.019 < min(shares) < 0.03
    assert 0.37 < max(shares) < 0.41
    assert 0.28 < min(ratios) < 0.34
    assert 2.9 < max(ratios) < 3.5
    np.testing.assert_allclose(np.mean(centres, axis=0), 100, atol=8)
    assert image.tobytes() == before


def test_an_erased_pixel_is_nearly_zero_for_the_model():
    processor = TPASProcessor.build(BertTokenizer(vocab={"[UNK]": 0}), image_size=8)
    assert processor(images=Image.new("RGB", (8, 8), CLIP_MEAN))["pixel_values"].abs().max() < 0.004


def test_erasing_comes_last_and_as_often_as_asked():
    image = noise(64, 64)
    erased = 0
    for seed in range(300):
        plain, _ = Augmentation(64)(image, random.Random(seed))
        hidden, _ = Augmentation(64, erasing_probability=0.6)(image, random.Random(seed))
        different = (np.asarray(plain) != np.asarray(hidden)).any(axis=2)
        assert (np.asarray(hidden)[different] == CLIP_MEAN).all()
        erased += different.any()
    assert erased / 300 == pytest.approx(0.6, abs=0.08)


def test_about_a_third_of_the_images_pass_rand_augment_unchanged():
    image = noise(32, 32)  # large enough that Equalize has an effect
    changed = (rand_augment(image, 2, 7, random.Random(seed)).tobytes() for seed in range(2000))
    unchanged = sum(pixels == image.tobytes() for pixels in changed)
    # Each of two operations is left out (1/2) or is Identity or AutoContrast (2/10 of the rest): 0.6 * 0.6.
    assert unchanged / 2000 == pytest.approx(0.36, abs=0.04)


def test_brightness_scales_every_pixel():
    image = noise(20, 20)
    expected = np.clip(np.asarray(image) * (0.1 + 1.8 * 0.7), 0, 255)
    np.testing.assert_allclose(apply("Brightness", image, 0.7), expected, atol=1)


def test_sharpness_exaggerates_edges():
    edge = Image.fromarray(np.repeat([[[100] * 3] * 4 + [[150] * 3] * 4], 8, axis=0).astype(np.uint8))
    row = apply("Sharpness", edge, 0.7)[4, :, 0]
    assert row[3] < 100
    assert row[4] > 150
    np.testing.assert_array_equal(row[[1, 6]], [100, 150])


def test_auto_contrast_and_equalize_stretch_a_dull_image():
    dull = Image.fromarray(np.arange(100, 140, dtype=np.uint8).repeat(90).reshape(40, 30, 3))
    for name in ("AutoContrast", "Equalize"):
        stretched = apply(name, dull, 0.7)
        assert stretched.min() == 0
        assert stretched.max() >= 250


@pytest.mark.parametrize(("name", "axis"), [("TranslateX", 1), ("TranslateY", 0)])
def test_translate_moves_by_seven_of_384_pixels_at_level_seven(name, axis):
    image = noise(384, 384)
    pixels = np.moveaxis(np.asarray(image).astype(float), axis, 0)
    seen = set()
    for seed in range(10):
        moved = np.moveaxis(apply(name, image, 0.7, seed), axis, 0)
        if (moved[:7] == FILL).all():
            seen.add("forward")
            np.testing.assert_array_equal(moved[7:], pixels[:-7])
        else:
            seen.add("backward")
            assert (moved[-7:] == FILL).all()
            np.testing.assert_array_equal(moved[:-7], pixels[7:])
    assert seen == {"forward", "backward"}


@pytest.mark.parametrize(("name", "axis"), [("ShearX", 1), ("ShearY", 0)])
def test_shear_moves_each_line_in_proportion_to_its_distance(name, axis):
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 200, 3))
    image = Image.fromarray(np.ascontiguousarray(np.moveaxis(ramp, 0, axis)))
    for seed in range(4):
        sheared = np.moveaxis(apply(name, image, 0.7, seed), axis, 0)[..., 0]  # (along, across)
        assert abs((sheared[100, 150] - sheared[100, 50]) / 100) == pytest.approx(0.3 * 0.7, abs=0.02)


def test_rotate_turns_by_thirty_degrees_at_full_strength():
    image = noise(31, 31)
    pixels = np.asarray(image).astype(float)
    turned = [apply("Rotate", image, 3.0, seed) for seed in range(6)]  # three times thirty: a quarter turn
    for result in turned:
        assert any((result == np.rot90(pixels, turns)).all() for turns in (1, -1))
    assert len({result.tobytes() for result in turned}) == 2
