"""Where a gallery's images come from: a folder, a `datasets.Dataset`, or pairs of an id and an image."""

import hashlib
import io
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field, replace
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile

from ..processing_tpas import load_image, upright_rgb
from .image_files import image_suffixes, load_inside
from .image_folders import FolderRules, LeftOut, list_images, no_images
from .moments import Moment
from .whole_files import file_checksum

PAIRS = "pairs (id, image), such as [(path.name, path) for path in files]"


@dataclass(frozen=True)
class SourceImage:
    """An image that has not been read yet.

    Attributes:
        id: its name in the gallery.
        load: reads it as upright RGB; raises OSError or ValueError where that fails.
        root, path: the file is `root`/`path`, `path` in POSIX form; None where it is no file.
        encoded: the content of a file that is in memory.
        moment: where in a film it was seen; None of what is of no film.
    """

    id: str
    load: Callable[[], Image.Image]
    root: str | None = None
    path: str | None = None
    encoded: bytes | None = field(default=None, repr=False)
    moment: Moment | None = None

    @property
    def file(self) -> Path | None:
        return None if self.root is None or self.path is None else Path(self.root, self.path)

    def content(self) -> str | None:
        """What stands for the file's content, wherever it lies; None for an image that is no file.

        Raises:
            OSError: the file cannot be read.
        """
        if self.encoded is not None:
            return hashlib.blake2b(self.encoded, digest_size=16).hexdigest()
        return None if self.file is None else file_checksum(self.file)

    def until_read(self) -> "SourceImage":
        """The same, to be read later, when what it comes from may have gone on to the next."""
        return self


@dataclass(frozen=True, kw_only=True)
class _OpenedImage(SourceImage):
    image: Image.Image

    def until_read(self) -> SourceImage:
        return SourceImage(self.id, partial(upright_rgb, _kept_until_read(self.image), self.id))


class FolderImages(list[SourceImage]):
    """The images of a folder, and what else it holds."""

    def __init__(self, images: Iterable[SourceImage], left_out: LeftOut):
        super().__init__(images)
        self.left_out = left_out


def file_state(file: Path) -> list[int]:
    """What changes whenever a file does, whatever its time of change is set to, without reading it.

    Size, time of change and time of change of the entry, in nanoseconds, and the entry's number: a copy or a
    file that was moved has the same content and other times. Zeros where there is no file.
    """
    try:
        status = file.stat()
    except OSError:  # gone since it was listed, a link to itself: whoever reads it will name it
        return [0, 0, 0, 0]
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def find_images(
    images: Any, id_column: str | None = None, rules: FolderRules | None = None, id_prefix: str = ""
) -> Iterable[SourceImage]:
    """The images of `images`, in a fixed order; with a length where it is known.

    Args:
        images: a folder, whose files get their relative POSIX path as id; a `datasets.Dataset` with an Image
            column; an iterable of (id, image), the image a path or a `PIL.Image.Image`; or a list of
            [`SourceImage`], which is returned as it is.
        id_column: the dataset's column of ids; `None`: the row numbers.
        rules: what of a folder is taken; `None`: the defaults.
        id_prefix: what each id begins with, such as "camera1/", so that sources of equal names can share a
            gallery.

    Raises:
        NotADirectoryError, ValueError, TypeError: it is none of these.
    """
    if isinstance(images, list) and all(isinstance(image, SourceImage) for image in images):
        return images
    if isinstance(images, str | Path):
        return _in_folder(Path(images), rules, id_prefix)
    if hasattr(images, "features"):
        return _Prefixed(_DatasetImages(images, id_column), id_prefix)
    if isinstance(images, Iterable):
        return _Prefixed(_NamedImages(images), id_prefix)
    raise TypeError(f"images must be a folder, a datasets.Dataset or {PAIRS}, got {type(images)}")


def _in_folder(folder: Path, rules: FolderRules | None, id_prefix: str) -> FolderImages:
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder of images")
    root = os.path.realpath(folder)
    content = list_images(folder, rules)
    if not content.images:
        raise ValueError(no_images(folder, content.left_out, image_suffixes()))
    return FolderImages(
        (
            SourceImage(id_prefix + path, partial(load_inside, root, path), root, path)
            for path in content.images
        ),
        content.left_out,
    )


@dataclass(frozen=True)
class _Prefixed:
    images: "_DatasetImages | _NamedImages"
    id_prefix: str

    def __length_hint__(self) -> int:
        return length_hint(self.images)

    def __iter__(self) -> Iterator[SourceImage]:
        if not self.id_prefix:
            yield from self.images  # under no other reference, so that an image goes once it was read
            return
        for image in self.images:
            yield replace(image, id=self.id_prefix + image.id)


class _DatasetImages:
    def __init__(self, dataset: Any, id_column: str | None):
        if dataset.features is None:
            raise TypeError(f"the columns of the streaming dataset are not known: give {PAIRS}")
        columns = [name for name, feature in dataset.features.items() if type(feature).__name__ == "Image"]
        if len(columns) != 1:
            raise ValueError(f"the dataset must have one Image column, it has {columns or 'none'}")
        if id_column is not None and id_column not in dataset.features:
            raise ValueError(f"the dataset has no column {id_column!r}, only {sorted(dataset.features)}")
        (self.column,) = columns
        self.id_column = id_column
        # The file's bytes as they are, so that `load_image` decodes them under its own limits.
        undecoded = type(dataset.features[self.column])(decode=False)
        self.dataset = dataset.cast_column(self.column, undecoded)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[SourceImage]:
        for number, row in enumerate(self.dataset):
            name = str(number) if self.id_column is None else str(row[self.id_column])
            image = row[self.column]
            if image is not None and image["bytes"] is not None:
                encoded = image["bytes"]
                yield SourceImage(name, partial(load_image, _NamedBytes(encoded, name)), encoded=encoded)
            elif image is not None and image["path"] is not None:
                yield _image_file(name, Path(image["path"]))
            else:
                yield SourceImage(name, partial(_missing, name))


def _missing(name: str) -> Image.Image:
    raise ValueError(f"{name}: the dataset's row has no image")


class _NamedBytes(io.BytesIO):
    """A file in memory under a name that errors can give."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


class _NamedImages:
    def __init__(self, pairs: Iterable[tuple[str, Any]]):
        self.pairs = pairs

    def __length_hint__(self) -> int:
        return len(self.pairs) if isinstance(self.pairs, Sized) else NotImplemented

    def __iter__(self) -> Iterator[SourceImage]:
        for pair in self.pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(f"images must be {PAIRS}, got {reprlib.repr(pair)}")
            name, image = pair
            if not isinstance(name, str) or not name:
                raise TypeError(f"an image's id must be a string that is not empty, got {name!r}")
            if isinstance(image, str | Path):
                yield _image_file(name, Path(image))
            elif isinstance(image, Image.Image):
                yield _OpenedImage(name, partial(upright_rgb, image, name), image=image)
            else:
                raise TypeError(f"image {name!r} must be a path or a PIL image, got {type(image)}")


def _image_file(name: str, file: Path) -> SourceImage:
    file = file.absolute()
    # The root is not the file's folder: under a new root, x/1.jpg and y/1.jpg would be one. And the file may
    # be a link to anywhere, as each of a Hub snapshot is: it is the caller who named it.
    root, path = file.anchor, file.relative_to(file.anchor).as_posix()
    return SourceImage(name, partial(load_inside, root, path), root, path)


def _kept_until_read(image: Image.Image) -> Image.Image:
    """What to keep of a caller's image until it is read: one that is not decoded yet stays so.

    To decode it would fill the memory where the caller keeps a list of them, and a generator may have closed
    it by then, or have moved it on to its next frame.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return image
    try:
        file = image.fp
        if file is not None and image.format and getattr(image, "_im", image) is None:
            position = file.tell()
            file.seek(0)
            again = Image.open(io.BytesIO(file.read()), formats=[image.format])
            file.seek(position)
            # Where they differ, the caller has chosen another frame, or by `draft` a size.
            if (again.format, again.size, again.tell()) == (image.format, image.size, image.tell()):
                return again
        return image.copy() if getattr(image, "is_animated", False) else image
    except Exception:  # such as a closed file: to decode it will tell
        return image
