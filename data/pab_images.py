"""PAB's images: the files that annotations name, read when they are asked for."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from .annotation_fields import relative_path
from .image_files import file_inside, load_file

SUFFIXES = (".jpg", ".webp", ".png")  # of PAB's releases


class ImageFiles(Sequence[Image.Image]):
    """Images by their paths relative to a root, each read when it is asked for.

    Args:
        annotated_at: where each path is written, such as "attr.json, line 3", for the message of an error.
        elsewhere: the files of those that do not lie under the root.
        follow_links: see `image_path`.
    """

    def __init__(
        self,
        root: Path,
        images: Sequence[str],
        annotated_at: Mapping[str, str] | None = None,
        elsewhere: Mapping[str, Path] | None = None,
        follow_links: bool = True,
    ):
        self.root = root
        self.images = images
        self.annotated_at = annotated_at or {}
        self.elsewhere = elsewhere or {}
        self.follow_links = follow_links

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        image = self.images[index]
        if image in self.elsewhere:
            return load_file(self.elsewhere[image])
        return open_image(self.root, image, self.annotated_at.get(image, image), self.follow_links)


def open_image(root: Path, image: str, place: str, follow_links: bool = True) -> Image.Image:
    """The image at the relative path `image`; see `image_path`.

    Raises:
        FileNotFoundError, PermissionError, ValueError: it is missing, may not or cannot be read; all begin
            with `place`.
    """
    try:
        return load_file(image_path(root, image, follow_links))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{place}: {error}") from error
    except PermissionError as error:
        raise PermissionError(f"{place}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _other_places(path: Path) -> Iterator[Path]:
    """Where else a training image may lie; an archive unpacks into a folder of its name, or not."""
    inner = path.relative_to("train") if path.parts[0] == "train" else path
    found = re.fullmatch(r"imgs_(\d+)", inner.parts[0])
    if found is None:
        return
    part = f"Part {int(found[1]) // 8 + 1}"
    for folder in (Path(), Path("train")):
        yield folder / inner
        for nested in (inner.parts[0], ""):
            yield folder / part / nested / inner


def image_path(root: str | Path, image: str, follow_links: bool = True) -> Path:
    """The file of a row's `image` or `hard_i`, whether it exists or not.

    What the row says cannot leave `root`. A link that lies there is followed, be it out of `root`: so are
    the files of a Hub snapshot links, and folders of other disks.

    Both layouts of PAB are known, under either's annotations: the flat one, `train/imgs_9/goal/0.jpg`, and
    that of its downloads, `Part 2/imgs_9/imgs_9/goal/0.jpg`, whose annotations say `imgs_9/goal/0.jpg`.

    The challenge's release packs images as .webp under annotations that say .jpg: where the named file is not
    there, but exactly one of the same stem and another of PAB's suffixes (.jpg, .webp, .png), it is that one.

    Args:
        follow_links: otherwise a link that leads out of `root` is refused.

    Raises:
        ValueError: an absolute path, one with "..", or such a link.
        PermissionError: a folder on the way may not be read.
    """
    path = Path(relative_path(image, "image_path"))
    for place in (path, *_other_places(path)):
        others = [place]
        if not (root / place).exists():
            others = [place.with_suffix(suffix) for suffix in SUFFIXES]
            others = [other for other in others if (root / other).exists()]
        if len(others) == 1:
            path = others[0]
            break
    try:
        return file_inside(root, path, follow_links)
    except ValueError as error:
        raise ValueError(
            f"the image path {image!r}: {error}: give the folder where the images are as root, and that of "
            "the annotation files as annotations"
        ) from error
