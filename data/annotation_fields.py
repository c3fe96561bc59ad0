"""What captions and image paths of an annotation must be, and what its splits are called."""

import re
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

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


LONGEST_PATH = 4096  # characters, as of systems: all the folders of a longer one would take gigabytes


def has_a_word(caption: str) -> bool:
    """Without a letter or digit nothing is left where punctuation is dropped, as X-VLM does."""
    return any(map(str.isalnum, caption))


def relative_path(image: str, where: str) -> str:
    """An annotated path in POSIX form; ValueError, beginning with `where`, if it may leave the root."""
    if len(image) > LONGEST_PATH:
        raise ValueError(f"{where}: the image path has {len(image):,} characters, {LONGEST_PATH:,} at most")
    path = PurePosixPath(image.replace("\\", "/"))
    drive = re.match("[A-Za-z]:", image)
    if path.is_absolute() or drive or not path.parts or ".." in path.parts or "\0" in image:
        raise ValueError(
            f"{where}: the image path {image!r} leaves the root; "
            "it must be relative to it, like 'train/imgs_0/goal/0.jpg'"
        )
    return str(path)


def required_text(record: dict[str, Any], key: str, where: str) -> str:
    """The text of a field; ValueError, beginning with `where`, where there is none."""
    text = optional_text(record, key, where)
    if text is None:
        raise ValueError(f"{where}: {key!r} is missing or empty")
    return text


def optional_text(record: dict[str, Any], key: str, where: str) -> str | None:
    """None for an absent, null or blank field. An identity written as a number becomes text."""
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key!r} must be text, got {value!r:.80}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{where}: {key!r} holds half of a surrogate pair, which is no text: {value!a:.80}")
    return value if value.strip() else None
