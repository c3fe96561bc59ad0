"""Where films come from: files, folders of them, folders of images with times in their names, addresses."""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..data.image_folders import list_images

ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|webcam:)", re.IGNORECASE)
FILM_SUFFIXES = frozenset(
    re.findall(
        r"\S+",
        ".mp4 .m4v .mov .mkv .webm .avi .ts .m2ts .mts .mpg .mpeg .flv .wmv .asf .3gp .ogv .dav .mxf "
        ".vob .nut .h264 .h265 .264 .265 .mjpeg .mjpg",
    )
)


def is_film(path: Path) -> bool:
    """Whether a file's name is that of a film; what is in it, its content alone tells."""
    return path.suffix.lower() in FILM_SUFFIXES


def is_address(source: str | Path) -> bool:
    """Whether it is a camera's address, and no path."""
    return ADDRESS.match(str(source)) is not None


@dataclass(frozen=True)
class Source:
    """A film and the name of its camera.

    Attributes:
        film: a path, or an address.
    """

    camera: str
    film: str


def find_films(place: str | Path, camera: str | None = None) -> list[Source]:
    """The films of a file, of a folder and those below it, or a camera's address.

    Args:
        camera: the camera's name, or for a folder of films what their names begin with; `None`: the file's
            name, in a folder its path below it.

    Raises:
        FileNotFoundError, ValueError: there is none, or the name cannot be a camera's.
    """
    if camera is not None:
        if camera.startswith("/") or ".." in camera.split("/") or plain_camera(camera) == ".":
            raise ValueError(f"a camera's name is a word or words divided by /, got {camera!r}")
        camera = plain_camera(camera)
    if is_address(place):
        plain = re.sub(r"^[^:]*:(//)?([^/@]*@)?", "", str(place))
        return [Source(camera or re.sub(r"[^\w.-]+", "_", plain).strip("_") or "camera", str(place))]
    path = Path(os.path.realpath(place))
    if not path.exists():
        raise FileNotFoundError(f"{place}: there is no such film or folder")
    if not path.is_dir():
        return [Source(camera or path.name, str(path))]
    prefix = f"{camera}/" if camera else ""
    films = sorted(file for file in path.rglob("*") if is_film(file) and file.is_file())
    if films:
        return [Source(prefix + file.relative_to(path).as_posix(), str(file)) for file in films]
    from ..data.image_files import image_suffixes  # which imports the decoder

    if any(file.suffix.lower() in image_suffixes() for file in path.iterdir()):
        return [Source(camera or path.name, str(path))]
    raise ValueError(f"{place} holds no films, and no images with times in their names")


def plain_camera(name: str) -> str:
    """A camera's name as its folder has it, "hall" of "hall/"; early versions kept what was given."""
    return PurePosixPath(name).as_posix()


def holds_films(place: str | Path) -> bool:
    """Whether a place is a film, an address, or a folder with films in it and no images."""
    if is_address(place):
        return True
    path = Path(place)
    if not path.is_dir():
        return is_film(path) and path.is_file()
    films = any(is_film(file) for file in path.rglob("*"))
    return films and not list_images(path).images
