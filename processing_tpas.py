"""Images and captions to the tensors that [`TPASModel`] reads."""

import importlib
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import BatchFeature, BertTokenizer, CLIPImageProcessorPil, ProcessorMixin
from transformers.image_processing_backends import PilBackend

from .configuration_tpas import height_and_width, number_if_square

# Bounds of one image, whoever it is from. The side is a JPEG's largest; the pixels are Pillow's own bound, a
# quarter of a gigabyte once decoded, and their file is not larger than that.
MAX_IMAGE_BYTES = 2**28
MAX_IMAGE_SIDE = 65_535
MAX_IMAGE_PIXELS = 89_478_485

# How much stands before the pixels, such as comments and tags, and in how many pieces a file is read. Where
# there are very many, Pillow puts all that it has together anew at each, for hours.
MAX_HEADER_BYTES, MAX_HEADER_PIECES = 2**23, 10_000
MAX_PIECES = 2**18  # of a PNG; one of `MAX_IMAGE_BYTES` has half as many
MAX_TILES = 100_000  # of TIFF, each decoded by itself: a strip for every row is fewer
MAX_SCANS = 100  # of a JPEG, each of which goes through all its pixels; cameras write some ten
START_OF_SCAN = b"\xff\xda"
# Of JPEG 2000, in each component: precincts take a kilobyte or two, and 151 bytes can ask for millions of
# them, or for 65,535 layers. What says so are the segments SIZ, by the tiles, COD and COC, in a file's header
# or a tile's; of the latter two up to the precincts' sizes, a byte of two exponents for each resolution.
MAX_PACKETS = 250_000
SIZES = re.compile(rb"\xff\x4f\xff\x51.{4}(.{4})(.{4}).{8}(.{4})(.{4})", re.DOTALL)
CODING = re.compile(
    rb"\xff(?:\x52\0.(?P<cod>[\0-\x07]).(?P<layers>..).|\x53\0.{2,3}?(?P<coc>.))"
    rb"(?P<levels>[\0-\x20])[\0-\x08]{2}.[\0\x01]",
    re.DOTALL,
)

# Not all that Pillow opens, whatever a file's name says: for PostScript it would start another program.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# Pillow makes RGB of these; for greys of 16 bits and for transparency `_to_rgb` has a rule of its own.
EIGHT_BIT_MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBA", "RGBa", "RGBX"}

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")

REMOVED_PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~]")
REPEATED_SPACE = re.compile(r"\s{2,}")


def clean_caption(caption: str) -> str:
    """Lower case, punctuation out, hyphens and slashes to spaces: X-VLM's `pre_caption` without its cut.

    >>> clean_caption("A man, bare-chested, in T-shirt/shorts.")
    'a man bare chested in t shirt shorts'
    """
    caption = REMOVED_PUNCTUATION.sub("", caption.lower())
    caption = caption.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return REPEATED_SPACE.sub(" ", caption).strip()


def check_captions(captions: Sequence[str]) -> None:
    """Raises ValueError for a caption in which nothing is left to read, naming its position from 0."""
    for position, caption in enumerate(captions):
        if not caption.strip():
            raise ValueError(f"caption {position} is empty, or punctuation alone")


def check_knows_words(tokenizer, whose: str) -> None:
    """Raises ValueError for a tokenizer without a word, to which all texts are alike.

    So are those that transformers makes where a tokenizer's files are not there.
    """
    special = set(tokenizer.all_special_ids)
    if all(number in special for number in tokenizer.get_vocab().values()):
        raise ValueError(
            f"{whose} knows no words: its files (tokenizer.json or vocab.txt) are missing or empty; get them "
            "again"
        )


@cache
def image_formats() -> tuple[str, ...]:
    """[`IMAGE_FORMATS`], and HEIF where pillow-heif is installed (the extra `heic`)."""
    try:
        # Not by a statement: the Hub would not load this file where the library is not installed.
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return IMAGE_FORMATS
    return (*IMAGE_FORMATS, "HEIF")


def load_image(
    path: str | Path | BinaryIO, max_pixels: int = MAX_IMAGE_PIXELS, edge: int | None = None
) -> Image.Image:
    """Reads an image as upright RGB: greys of 16 bits by their high byte, transparency on white.

    Args:
        max_pixels: a smaller bound of its own for whoever opens images of strangers.
        edge: pixels of the longer side that are enough: a JPEG that has twice as many, or more, is decoded
            to fewer, which takes a third of the time of a photograph. It still has `edge` or more.

    Raises:
        FileNotFoundError, PermissionError: there is no such file, or it may not be read.
        ValueError: it is no file (a folder, a pipe, a device) or no image of [`image_formats`], is cut off,
            holds values that are no colours (floating point, 32 bits, Lab), is larger than
            [`MAX_IMAGE_BYTES`], [`MAX_IMAGE_SIDE`] or `max_pixels`, or is made to take far longer, or more
            memory, than its size says; the message names the file.
    """
    if not isinstance(path, str | Path):
        return _load_image(path, path, max_pixels, edge)
    with _opened(path) as file:
        return _load_image(file, path, max_pixels, edge)


def _opened(path: str | Path) -> BinaryIO:
    try:
        # Without waiting: a pipe that nobody writes to would be opened for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except PermissionError:
        raise PermissionError(f"{path}: this user may not read the file") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path}: no file, but a folder, a pipe or a device")
    return os.fdopen(descriptor, "rb")


def _load_image(file: BinaryIO, name: object, max_pixels: int, edge: int | None) -> Image.Image:
    size = file.seek(0, os.SEEK_END)
    if size > MAX_IMAGE_BYTES:
        raise ValueError(f"{name}: {size} bytes are more than {MAX_IMAGE_BYTES}")
    file.seek(0)
    try:
        return _decoded(file, name, max_pixels, edge)
    except ValueError as error:
        # Pillow gives up on a PNG over what is written beside its pixels, such as a prompt of a megabyte.
        if "MAX_TEXT_" not in str(error):
            raise
    file.seek(0)
    return _decoded(_without_text_chunks(file.read()), name, max_pixels, edge)


class _TooMuchError(Exception):
    """An image that would take far longer, or more memory, than its size says."""


class _InPieces:
    """A file, which raises `_TooMuchError` where it is read in too many pieces, or too much of it."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.most_pieces, self.most_bytes = float(MAX_HEADER_PIECES), float(MAX_HEADER_BYTES)

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(size)
        self.most_pieces -= 1
        if size >= 0:  # some formats are read whole
            self.most_bytes -= len(content)
        if self.most_pieces < 0:
            raise _TooMuchError("its comments, tags or other parts come in too many pieces")
        if self.most_bytes < 0:
            raise _TooMuchError(f"more than {MAX_HEADER_BYTES} bytes before the pixels")
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _decoded(file: BinaryIO, name: object, max_pixels: int, edge: int | None) -> Image.Image:
    pieces = _InPieces(file)
    try:
        with warnings.catch_warnings():
            # `upright_rgb` refuses what is too large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(cast(BinaryIO, pieces), formats=image_formats())
        # What follows the pixels of a PNG is read as well; others' pixels may be read one by one.
        pieces.most_pieces = MAX_PIECES if image.format == "PNG" else math.inf
        pieces.most_bytes = math.inf
        _check_cost(image, file)
    except _TooMuchError as error:
        raise ValueError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not an image, or none of {', '.join(image_formats())}") from error
    except Exception as error:  # as in `upright_rgb`
        raise _broken(name, error) from error
    with image:
        return upright_rgb(image, name, max_pixels, edge)


def _check_cost(image: Image.Image, file: BinaryIO) -> None:
    """Raises _TooMuchError for an opened image that is not decoded in the time and memory of its size."""
    tiles = getattr(image, "tile", [])
    if len(tiles) > MAX_TILES:
        raise _TooMuchError(f"{len(tiles)} tiles or strips are more than {MAX_TILES}")
    if any(tile[0] == "ppm_plain" for tile in tiles):
        raise _TooMuchError("pixels as numbers in text (P1 to P3), which take minutes: save it as PNG")
    if image.format not in ("JPEG", "MPO", "JPEG2000"):
        return
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    if image.format != "JPEG2000" and content.count(START_OF_SCAN) > MAX_SCANS:
        raise _TooMuchError(f"more than {MAX_SCANS} scans")
    if image.format == "JPEG2000" and _packets(content) > MAX_PACKETS:
        raise _TooMuchError(f"more than {MAX_PACKETS} packets")


def _packets(content: bytes) -> int:
    """Of a component of a JPEG 2000 at most: one for each layer of each precinct of each resolution."""
    sizes = [[int.from_bytes(side) or 1 for side in found.groups()] for found in SIZES.finditer(content)]
    width, height, *_ = map(max, zip(*sizes, strict=True)) if sizes else (1, 1)
    tiles = max((-(-width // across) * -(-height // down) for *_, across, down in sizes), default=1)
    layers, precincts = 1, tiles
    for found in CODING.finditer(content):
        levels, own = found["levels"][0], (found["cod"] or found["coc"])[0] & 1
        layers = max(layers, int.from_bytes(found["layers"] or b""))
        exponents = content[found.end() : found.end() + levels + 1] if own else b"\xff" * (levels + 1)
        halvings = ((levels - level, size & 15, size >> 4) for level, size in enumerate(exponents))
        counts = (-(-width >> left + right) * -(-height >> left + down) for left, right, down in halvings)
        precincts = max(precincts, sum(max(count, tiles) for count in counts))
    return layers * precincts


def _without_text_chunks(content: bytes) -> io.BytesIO:
    """A PNG file as it would be had nobody written text into it."""
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start < len(content):
        # A chunk: the length of its data in four bytes, its name in four, the data, a checksum in four.
        end = start + 12 + int.from_bytes(content[start : start + 4])
        if content[start + 4 : start + 8] not in PNG_TEXT_CHUNKS:
            kept.append(content[start:end])
        start = end
    return io.BytesIO(b"".join(kept))


def upright_rgb(
    image: Image.Image, name: object, max_pixels: int = MAX_IMAGE_PIXELS, edge: int | None = None
) -> Image.Image:
    """An opened image as upright RGB, see [`load_image`].

    Raises:
        ValueError: it is broken, holds values that are no colours, or is larger than [`MAX_IMAGE_SIDE`] or
            `max_pixels`; `name` begins the message.
    """
    width, height = image.size
    if max(width, height) > MAX_IMAGE_SIDE:
        raise ValueError(f"{name}: {width}x{height} pixels, no side may have more than {MAX_IMAGE_SIDE}")
    if width * height > max_pixels:
        raise ValueError(f"{name}: {width}x{height} pixels are more than {max_pixels}")
    if edge is not None:
        longer = max(width, height)
        image.draft(None, (math.ceil(width * edge / longer), math.ceil(height * edge / longer)))
    try:
        rgb = _to_rgb(ImageOps.exif_transpose(image))
    except _TooMuchError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # broken files make Pillow raise almost anything, struct.error for one
        raise _broken(name, error) from error
    if rgb is None:
        raise ValueError(
            f"{name}: an image of mode {image.mode}, whose values have no agreed brightness; "
            "save it with 8 or 16 bits a channel"
        )
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image | None:
    """`image` as RGB; None for a mode or a range of values that is not known to be colours."""
    transparent = image.has_transparency_data
    if image.mode.startswith("I"):
        # Pillow would clip at 255, which makes every such photograph white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            return None
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        if transparent:  # the one grey that a PNG names as see-through
            grey.paste(255, mask=Image.fromarray(values == image.info["transparency"]))
        return grey.convert("RGB")
    if image.mode not in EIGHT_BIT_MODES:
        return None
    if not transparent:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _broken(name: object, error: Exception) -> ValueError:
    return ValueError(f"{name}: broken image ({type(error).__name__}: {error})")


def resized_before(image_processor: Any, images: list[Image.Image]) -> list[Image.Image]:
    """The images as the processor would resize them first, with the same pixels after all; or as they are.

    It would make an array of the whole image, and of that an image again: half its time for a photograph.
    """
    kind, size = type(image_processor), dict(image_processor.size or {})
    same_steps = kind._preprocess is PilBackend._preprocess and kind.resize is PilBackend.resize
    if not (same_steps and image_processor.do_resize and image_processor.resample is not None):
        return images
    if {name for name in size if size[name] is not None} != {"height", "width"}:
        return images  # of another shape for each image
    wanted, how = (size["width"], size["height"]), Image.Resampling(image_processor.resample)
    return [image.resize(wanted, how) if image.mode == "RGB" else image for image in images]


class TPASProcessor(ProcessorMixin):
    """Images to one size and CLIP's mean and deviation by bicubic interpolation, captions to tokens.

    Args:
        image_processor: a `CLIPImageProcessorPil`; see [`TPASProcessor.build`] for X-VLM's settings.
        tokenizer: a `BertTokenizer`.
        max_text_length: tokens at which a caption is cut, [CLS] and [SEP] included.
        clean_captions: whether captions go through [`clean_caption`] first, as in X-VLM.
    """

    def __init__(self, image_processor, tokenizer, max_text_length: int = 70, clean_captions: bool = True):
        if not isinstance(image_processor, CLIPImageProcessorPil):
            # Beside torchvision, AutoImageProcessor picks another backend, whose pixels differ slightly.
            image_processor = CLIPImageProcessorPil(**image_processor.to_dict())
        super().__init__(image_processor, tokenizer)
        self.max_text_length = max_text_length
        self.clean_captions = clean_captions

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        # Its parts have no code of their own, and without this transformers would ask on the terminal whether
        # to run what a folder brings.
        kwargs["trust_remote_code"] = False
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _load_tokenizer_from_pretrained(cls, sub_processor_type, pretrained_model_name_or_path, **kwargs):
        # AutoTokenizer would read config.json, find a custom model and ask whether to run its code.
        tokenizer = BertTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        check_knows_words(tokenizer, f"the tokenizer of {pretrained_model_name_or_path}")
        return tokenizer

    @classmethod
    def build(cls, tokenizer, image_size: int | Sequence[int] = 384, **kwargs) -> "TPASProcessor":
        """A processor with X-VLM's image settings: the whole image squeezed to `image_size`, no crop."""
        height, width = height_and_width(image_size)
        image_processor = CLIPImageProcessorPil(size={"height": height, "width": width}, do_center_crop=False)
        return cls(image_processor, tokenizer, **kwargs)

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Pixels a side of `pixel_values`, or (height, width); the model must take the same."""
        size = self.image_processor.size
        return number_if_square((size["height"], size["width"]))

    @image_size.setter
    def image_size(self, image_size: int | Sequence[int]):
        height, width = height_and_width(image_size)
        self.image_processor.size = {"height": height, "width": width}

    def __call__(
        self,
        images: Image.Image | list[Image.Image] | None = None,
        text: str | list[str] | None = None,
        return_tensors: str | None = "pt",
        **text_kwargs,
    ) -> BatchFeature:
        """Images to `pixel_values` (I, 3, H, W), captions to `input_ids` and `attention_mask` (T, L).

        Captions are padded to the longest of the call and cut at `max_text_length` tokens;
        `text_kwargs` (such as `padding="max_length"`) go to the tokenizer.

        Raises:
            ValueError: for an empty caption, see [`check_captions`], and when neither is given.
        """
        if images is None and text is None:
            raise ValueError("give images, text, or both")
        features = {}
        if images is not None:
            images = resized_before(self.image_processor, images if isinstance(images, list) else [images])
            features.update(self.image_processor(images, return_tensors=return_tensors))
        if text is not None:
            captions = [text] if isinstance(text, str) else list(text)
            if self.clean_captions:
                captions = [clean_caption(caption) for caption in captions]
            check_captions(captions)
            settings = {
                "padding": "longest",
                "truncation": True,
                "max_length": self.max_text_length,
                "return_token_type_ids": False,
            }
            settings |= text_kwargs
            features.update(self.tokenizer(captions, return_tensors=return_tensors, **settings))
        return BatchFeature(features)


TPASProcessor.register_for_auto_class()
