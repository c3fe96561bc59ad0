"""What captions and image paths of an annotation must be."""

import re
from pathlib import PurePosixPath


def has_a_word(caption: str) -> bool:
    """Without a letter or digit nothing is left where punctuation is dropped, as X-VLM does."""
    return any(map(str.isalnum, caption))


def relative_path(image: str, where: str) -> str:
    """An annotated path in POSIX form; ValueError, beginning with `where`, if it may leave the root."""
    path = PurePosixPath(image.replace("\\", "/"))
    drive = re.match("[A-Za-z]:", image)
    if path.is_absolute() or drive or not path.parts or ".." in path.parts or "\0" in image:
        raise ValueError(
            f"{where}: the image path {image!r} leaves the root; "
            "it must be relative to it, like 'train/imgs_0/goal/0.jpg'"
        )
    return str(path)
