"""What captions and image paths of an annotation must be, and what its splits are called."""

import re
from pathlib import PurePosixPath
from typing import Literal, get_args

# The test images again in other weather and light; named as PAB's files of them.
WeatherSplit = Literal[
    "multi-weather_wind",
    "multi-weather_rain",
    "multi-weather_snow",
    "multi-weather_rain_snow",
    "multi-weather_dark",
    "multi-weather_dark_wind",
    "multi-weather_dark_rain",
    "multi-weather_dark_snow",
    "multi-weather_light",
]
EvaluatedSplit = Literal["validation", "test", "ucc", WeatherSplit]
SPLITS: tuple[str, ...] = ("train", *get_args(EvaluatedSplit))


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
