"""The pictures that annotations name, read from a data set's folder, errors saying where they are named."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from tpas.pab import image_path
from tpas.processing_tpas import load_image


class PictureFiles(Sequence[Image.Image]):
    """Pictures under a root by their relative paths, each read when it is asked for.

    Args:
        annotated_at: where each path is written, such as "attr.json, line 3", for the message of an error.
    """

    def __init__(self, root: Path, images: Sequence[str], annotated_at: Mapping[str, str]):
        self.root = root
        self.images = images
        self.annotated_at = annotated_at

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        image = self.images[index]
        return open_picture(self.root, image, self.annotated_at.get(image, image))


def open_picture(root: Path, image: str, place: str) -> Image.Image:
    """The picture at the relative path `image`.

    Raises:
        FileNotFoundError, ValueError: it is missing, or cannot be read; both begin with `place`.
    """
    try:
        return load_image(image_path(root, image))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{place}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
