"""X-VLM's fine-tuning augmentation on PIL images: crop and resize, mirror, RandAugment(2, 7).

Upstream's `train_transform`, without torchvision and OpenCV, and two options from the field, off by default:
whole images among the crops, and random erasing. Every random choice comes from the `random.Random` that
is handed in, so the same generator state gives the same image; an option that is off draws nothing.
"""

import math
import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageEnhance, ImageOps

FILL = (128, 128, 128)  # what upstream shows where a shifted image leaves a gap
CLIP_MEAN = (123, 117, 104)  # the processor's mean colour: within 0.004 of 0 once normalised
ERASED_SHARE = (0.02, 0.4)  # of the area, as in APTM
ERASED_RATIO = (0.3, 1 / 0.3)  # width / height
OPERATION_PROBABILITY = 0.5  # upstream draws two operations and applies each with this probability
GREATEST_LEVEL = 10


class Augmentation:
    """Maps an RGB image and a generator to an augmented RGB image.

    Args:
        size: of the result, pixels a side or (height, width).
        scale: least and greatest share of the area that the crop keeps.
        ratio: least and greatest width / height of the crop.
        crop_probability: of showing a crop (a local view); otherwise the whole image is squeezed to
            `size` (the global view, the one that evaluation sees). After the local-global hybrid
            perspective of arXiv:2511.22470; 1 is upstream's.
        flip_probability: of mirroring left and right.
        operations, level: RandAugment's two numbers, the level out of 10.
        erasing_probability: of hiding a rectangle (Zhong et al. 2020; APTM: 0.6); 0 is upstream's.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: tuple[float, float] = (0.5, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        crop_probability: float = 1.0,
        flip_probability: float = 0.5,
        operations: int = 2,
        level: int = 7,
        erasing_probability: float = 0.0,
    ):
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.scale = scale
        self.ratio = ratio
        self.crop_probability = crop_probability
        self.flip_probability = flip_probability
        self.operations = operations
        self.level = level
        self.erasing_probability = erasing_probability

    def __call__(self, image: Image.Image, rng: random.Random) -> tuple[Image.Image, bool]:
        """The augmented image, and whether it is mirrored: then its caption's left is the image's right."""
        local = self.crop_probability >= 1 or rng.random() < self.crop_probability
        box = random_box(*image.size, self.scale, self.ratio, rng) if local else None
        image = image.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)
        mirrored = rng.random() < self.flip_probability
        if mirrored:
            image = ImageOps.mirror(image)
        image = rand_augment(image, self.operations, self.level, rng)
        if self.erasing_probability > 0 and rng.random() < self.erasing_probability:
            image = erase_rectangle(image, rng)
        return image, mirrored


def random_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom): share of area uniform in `scale`, width / height log-uniform in `ratio`.

    Always inside the image: after ten draws that do not fit, the largest central box of an allowed ratio.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = rng.randint(0, width - box_width)
            top = rng.randint(0, height - box_height)
            return left, top, left + box_width, top + box_height
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width = min(width, max(1, round(height * aspect)))
    box_height = min(height, max(1, round(width / aspect)))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def erase_rectangle(image: Image.Image, rng: random.Random) -> Image.Image:
    """A copy with one rectangle, as `random_box` draws it, in the mean colour."""
    erased = image.copy()
    erased.paste(CLIP_MEAN, random_box(*image.size, ERASED_SHARE, ERASED_RATIO, rng))
    return erased


def rand_augment(image: Image.Image, operations: int, level: int, rng: random.Random) -> Image.Image:
    """Draws from `OPERATIONS`, with replacement, and applies each with probability 0.5 at `level` of 10."""
    for _ in range(operations):
        operation = OPERATIONS[rng.choice(tuple(OPERATIONS))]
        if rng.random() < OPERATION_PROBABILITY:
            image = operation(image, level / GREATEST_LEVEL, rng)
    return image


def _enhance(enhancer: type) -> Callable[[Image.Image, float, random.Random], Image.Image]:
    def operation(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
        return enhancer(image).enhance(0.1 + 1.8 * strength)

    return operation


def _affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=FILL
    )


def _signed(value: float, rng: random.Random) -> float:
    return value if rng.random() < 0.5 else -value


def _shear_x(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return _affine(image, (1, _signed(0.3 * strength, rng), 0, 0, 1, 0))


def _shear_y(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return _affine(image, (1, 0, 0, _signed(0.3 * strength, rng), 1, 0))


def _shift(length: int, strength: float, rng: random.Random) -> float:
    # Upstream shifts by up to 10 pixels at its image size of 384; the same share is kept at other sizes.
    return _signed(10 / 384 * length * strength, rng)


def _translate_x(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return _affine(image, (1, 0, _shift(image.width, strength, rng), 0, 1, 0))


def _translate_y(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _shift(image.height, strength, rng)))


def _rotate(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return image.rotate(_signed(30 * strength, rng), Image.Resampling.BILINEAR, fillcolor=FILL)


OPERATIONS: dict[str, Callable[[Image.Image, float, random.Random], Image.Image]] = {
    "Identity": lambda image, strength, rng: image,
    "AutoContrast": lambda image, strength, rng: ImageOps.autocontrast(image),
    "Equalize": lambda image, strength, rng: ImageOps.equalize(image),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
}
