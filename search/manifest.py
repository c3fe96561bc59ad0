"""A gallery's directory: shards of encoded images, and a manifest that says which of them count.

    gallery.json                the manifest, written last: a shard that it does not name does not count; it
                                also says by which name the model was loaded
    builder.lock                held by the one build that may write
    columns.safetensors         what filters ask of every image, see `tpas.search.columns`; optional
    faiss.index  faiss.json     an approximate index of the embeddings, and what it was made from; optional
    shards/000003-5f0c2a91/     some hundred images, written beside and renamed
        pictures.json         ids and files of the images, what stands for the files' content, and what could
                                not be read
        embeddings.safetensors  embeddings (n, D) fp32, id_hashes (n,) and token_checksums (n,) int64
        tokens.safetensors      tokens (n, 1+N, image width), fp16 or fp32; optional
        thumbnails.zip          0.jpg, 1.jpg, ...; optional
        shard.json              the settings, and length and checksum of each file

A shard never changes. Appending adds shards, deleting writes shards anew, and each ends with a new manifest:
who opened the old one goes on reading the shards that it names.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from ..data.image_folders import GALLERY_FILES, GALLERY_SHARDS
from ..data.json_records import read_json
from ..data.whole_files import AlreadyHeldError, denial, held_alone, remove_abandoned, write_json
from ..models.model_source import ModelSource

FORMAT = 1
MANIFEST, LOCK = GALLERY_FILES
FAISS_INDEX, FAISS_DESCRIPTION = "faiss.index", "faiss.json"
SHARDS = GALLERY_SHARDS
SHARD = "shard.json"
FOOTAGE = "footage"  # the folder of what was cut from films, see `tpas.footage.records`
WAIT = 5.0  # seconds: a search holds the lock for a moment, to keep the columns that it has made
SHARD_NAME = re.compile(r"(\d{6,})-[0-9a-f]{16}")
IMAGES, EMBEDDINGS, TOKENS, THUMBNAILS = (
    "pictures.json",
    "embeddings.safetensors",
    "tokens.safetensors",
    "thumbnails.zip",
)


class GalleryError(RuntimeError):
    """A gallery that cannot be used as asked; the message says why, and the way out."""


class GalleryChangedError(GalleryError):
    """Another process deleted from the gallery, or replaced it, since it was opened."""


@dataclass(frozen=True)
class GallerySettings:
    """What all shards of a gallery share.

    Attributes:
        model_fingerprint: of the model that encoded it.
        tokens: "float16" or "float32", or None where they are left out.
        thumbnail_size: the longest side in pixels, or None for no thumbnails.
        image_fingerprint: of what else decides the images' features, not the texts'; None where it was
            not kept, in galleries of early versions, or is not known.
        text_fingerprint: of the tokenizer's words, by which the model reads what is searched for; None as
            above.
        bf16: the images were encoded in bfloat16.
    """

    model_fingerprint: str
    tokens: str | None
    thumbnail_size: int | None
    image_fingerprint: str | None = None
    text_fingerprint: str | None = None
    bf16: bool = False

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "GallerySettings":
        """What `to_json` made; it may lack all fingerprints but the model's, as of early versions."""
        settings = dict(content)
        return cls(image_fingerprint=settings.pop("picture_fingerprint", None), **settings)

    def to_json(self) -> dict[str, Any]:
        settings = asdict(self)
        settings |= {"picture_fingerprint": settings.pop("image_fingerprint")}  # its first name, kept
        # Left out where they say nothing, as early versions left them out.
        for name, nothing in (("text_fingerprint", None), ("bf16", False)):
            if settings[name] is nothing:
                del settings[name]
        return settings

    def check_equal(
        self, other: "GallerySettings", directory: Path, made_by: ModelSource | None = None
    ) -> None:
        """Raises GalleryError, naming what differs from `other`, that of the gallery in `directory`.

        An image or text fingerprint that is None on either side differs from none.

        Args:
            made_by: what the gallery says made it.
        """
        if self.model_fingerprint != other.model_fingerprint:
            name = "" if made_by is None else f", {made_by}"
            raise GalleryError(
                f"the gallery {directory} was made by the model {other.model_fingerprint}, and this one is "
                f"{self.model_fingerprint}: use that model{name}, or build another gallery with this one"
            )
        own, there = self.image_fingerprint, other.image_fingerprint
        if None not in (own, there) and own != there:
            raise GalleryError(
                f"the gallery {directory} was made with the image settings {there}, and these are {own}: "
                "under the same weights, the image encoder's configuration or the image processor differs. "
                "Use the model's revision that made it, or build another gallery with this one"
            )
        own, there = self.text_fingerprint, other.text_fingerprint
        if None not in (own, there) and own != there:
            raise GalleryError(
                f"the gallery {directory} was made beside a tokenizer of the words {there}, and this one "
                f"has {own}: under the same weights it gives the model other texts to read. Put "
                "the tokenizer's files that came with the model back, or build another gallery with this one"
            )
        for name in ("tokens", "thumbnail_size", "bf16"):
            own, there = getattr(self, name), getattr(other, name)
            if own != there:
                raise GalleryError(
                    f"the gallery {directory} was begun with {name}={there}, and {name}={own} was asked for: "
                    "use the same, or build another gallery"
                )


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none.

    Raises:
        GalleryError: it may not be read, is damaged, or of another format.
    """
    path = directory / MANIFEST
    try:
        manifest = read_json(path)
        found = manifest["format"]
        if found == FORMAT:
            manifest["settings"] = GallerySettings.from_json(manifest["settings"])
            manifest["model"] = ModelSource.from_json(manifest.get("model"))
            if manifest["settings"].tokens not in ("float16", "float32", None):
                raise ValueError(f"there are no tokens of type {manifest['settings'].tokens}")
            _check_keys(manifest, {"name", "next_shard", "shards", "unreadable"})
            _check_number(manifest["next_shard"], "next_shard")
            if not all(isinstance(reason, str) for reason in dict(manifest["unreadable"]).values()):
                raise ValueError("what could not be read has no reasons")
            for shard in manifest["shards"]:
                _check_keys(shard, {"name", "rows", "files"})
                shard_number(shard["name"])
                _check_number(shard["rows"], "rows")
                if {*shard["files"]} != _files_of(manifest["settings"]):
                    raise ValueError(f"shard {shard['name']} names other files than belong there")
                for file in shard["files"].values():
                    _check_keys(file, {"bytes", "blake2b"})
                    _check_number(file["bytes"], "bytes")
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise GalleryError(f"the gallery {denial(directory)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GalleryError(
            f"{path} is damaged ({error!r}): restore it, or build the gallery again"
        ) from error
    if found != FORMAT:
        raise GalleryError(
            f"{path} is of format {found}, and this code reads {FORMAT}: build the gallery again"
        )
    return manifest


def _files_of(settings: GallerySettings) -> set[str]:
    """The names of a shard's files."""
    kept = {TOKENS: settings.tokens, THUMBNAILS: settings.thumbnail_size}
    return {IMAGES, EMBEDDINGS} | {name for name, value in kept.items() if value is not None}


def _check_number(value: Any, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}")


def _check_keys(entry: dict[str, Any], keys: set[str]) -> None:
    if missing := keys - entry.keys():
        raise ValueError(f"{sorted(missing)} are missing")


def new_manifest(settings: GallerySettings) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": uuid4().hex,
        "settings": settings,
        "model": None,
        "next_shard": 0,
        "shards": [],
        "unreadable": {},
    }


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    source: ModelSource | None = manifest["model"]
    content = manifest | {
        "settings": manifest["settings"].to_json(),
        "model": None if source is None else source.to_json(),
    }
    write_json(directory / MANIFEST, content, durable=True)


def shard_number(name: str) -> int:
    match = SHARD_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a shard")
    return int(match[1])


@contextmanager
def builder_lock(directory: Path, wait: float = WAIT) -> Iterator[None]:
    """Holds the right to write into `directory`, which is made if need be; see [`held_alone`].

    Args:
        wait: seconds to wait for who holds it.

    Raises:
        GalleryError: another build holds it, or the directory cannot be written to.
    """
    with ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held_alone(directory / LOCK, wait))
        except AlreadyHeldError as held:
            raise GalleryError(
                f"another process is writing to the gallery {directory} ({held}): wait for its end"
            ) from None
        except OSError as error:
            raise GalleryError(f"the gallery {directory} cannot be written to ({error})") from error
        remove_abandoned(directory)
        yield


@contextmanager
def explained_write_errors(directory: Path) -> Iterator[None]:
    """Turns a failed write, such as that of a full disk, into a GalleryError that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        remedy = "the disk is full: make room" if full else "repair this"
        raise GalleryError(
            f"could not write to the gallery {directory} ({error}). What is there is whole; {remedy}, then "
            "do the same again and it goes on from there"
        ) from error
