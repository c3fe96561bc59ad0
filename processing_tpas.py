"""Images and captions to the tensors that [`TPASModel`] reads."""

import importlib
import io
import re
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import BatchFeature, BertTokenizer, CLIPImageProcessorPil, ProcessorMixin

MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own bound: a quarter of a gigabyte once decoded

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


@cache
def image_formats() -> tuple[str, ...]:
    """[`IMAGE_FORMATS`], and HEIF where pillow-heif is installed (the extra `heic`)."""
    try:
        # Not by a statement: the Hub would not load this file where the library is not installed.
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return IMAGE_FORMATS
    return (*IMAGE_FORMATS, "HEIF")


def load_image(path: str | Path | BinaryIO) -> Image.Image:
    """Reads an image as upright RGB: greys of 16 bits by their high byte, transparency on white.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: this user may not read it.
        ValueError: it is no image of [`image_formats`], is cut off, holds values that are no colours
            (floating point, 32 bits, Lab), or has more than [`MAX_IMAGE_PIXELS`] pixels; the message
            names the file.
    """
    try:
        return _load_image(path, path)
    except ValueError as error:
        # Pillow gives up on a PNG over what is written beside its pixels, such as a prompt of a megabyte.
        if "MAX_TEXT_" not in str(error):
            raise
    return _load_image(_without_text_chunks(path), path)


def _load_image(file: str | Path | BinaryIO, name: object) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # `upright_rgb` refuses what is too large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=image_formats())
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such image file") from None
    except PermissionError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not an image, or none of {', '.join(image_formats())}") from error
    except Exception as error:  # as in `upright_rgb`
        raise _broken(name, error) from error
    with image:
        return upright_rgb(image, name)


def _without_text_chunks(path: str | Path | BinaryIO) -> io.BytesIO:
    """A PNG file as it would be had nobody written text into it."""
    if isinstance(path, str | Path):
        content = Path(path).read_bytes()
    else:
        path.seek(0)
        content = path.read()
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start < len(content):
        # A chunk: the length of its data in four bytes, its name in four, the data, a checksum in four.
        end = start + 12 + int.from_bytes(content[start : start + 4])
        if content[start + 4 : start + 8] not in PNG_TEXT_CHUNKS:
            kept.append(content[start:end])
        start = end
    return io.BytesIO(b"".join(kept))


def upright_rgb(image: Image.Image, name: object) -> Image.Image:
    """An opened image as upright RGB, see [`load_image`].

    Raises:
        ValueError: it is broken, holds values that are no colours, or has more than
            [`MAX_IMAGE_PIXELS`] pixels; `name` begins the message.
    """
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(f"{name}: {width}x{height} pixels are more than {MAX_IMAGE_PIXELS}")
    try:
        rgb = _to_rgb(ImageOps.exif_transpose(image))
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


class TPASProcessor(ProcessorMixin):
    """Images to squares of CLIP's mean and deviation by bicubic interpolation, captions to tokens.

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
    def _load_tokenizer_from_pretrained(cls, sub_processor_type, pretrained_model_name_or_path, **kwargs):
        # AutoTokenizer would read config.json, find a custom model and ask whether to run its code.
        return BertTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def build(cls, tokenizer, image_size: int = 384, **kwargs) -> "TPASProcessor":
        """A processor with X-VLM's image settings: the whole image squeezed to a square, no crop."""
        image_processor = CLIPImageProcessorPil(
            size={"height": image_size, "width": image_size}, do_center_crop=False
        )
        return cls(image_processor, tokenizer, **kwargs)

    @property
    def image_size(self) -> int:
        """Height and width of `pixel_values`; the model must take the same."""
        return self.image_processor.size["height"]

    @image_size.setter
    def image_size(self, image_size: int):
        self.image_processor.size = {"height": image_size, "width": image_size}

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
