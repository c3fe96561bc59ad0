"""Images and captions to the tensors that [`TPASModel`] reads."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import BatchFeature, BertTokenizer, CLIPImageProcessorPil, ProcessorMixin

MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own bound: a quarter of a gigabyte once decoded

# Not all that Pillow opens, whatever a file's name says: for PostScript it would start another program.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

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


def load_image(path: str | Path | BinaryIO) -> Image.Image:
    """Reads an image as upright RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image of [`IMAGE_FORMATS`], is cut off, or has more than
            [`MAX_IMAGE_PIXELS`] pixels; the message names the file.
    """
    try:
        with warnings.catch_warnings():
            # `upright_rgb` refuses what is too large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=IMAGE_FORMATS)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image, or none of {', '.join(IMAGE_FORMATS)}") from error
    except Exception as error:  # as in `upright_rgb`
        raise _broken(path, error) from error
    with image:
        return upright_rgb(image, path)


def upright_rgb(image: Image.Image, name: object) -> Image.Image:
    """An opened image as upright RGB.

    Raises:
        ValueError: it is broken, or has more than [`MAX_IMAGE_PIXELS`] pixels; `name` begins the message.
    """
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(f"{name}: {width}x{height} pixels are more than {MAX_IMAGE_PIXELS}")
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # broken files make Pillow raise almost anything, struct.error for one
        raise _broken(name, error) from error


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
