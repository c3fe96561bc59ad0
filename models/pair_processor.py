"""A transformers image processor and tokenizer in the form of a `RetrievalProcessor`."""

from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase

from ..processing_tpas import check_captions, check_knows_words, resized_before
from .baselines_extra import missing_from_baselines

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class PairProcessor:
    """Images and captions as the model was trained on them; pixels come from Pillow, on every machine.

    Args:
        image_size: pixels a side of what the model sees, or (height, width).
        max_text_length: tokens at which a caption is cut.
        full_length: captions are shown in lower case and padded to the `max_text_length` given here, as
            SigLIPs were trained, also where it is lowered later; otherwise to the longest of a call.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        image_size: int | tuple[int, int],
        max_text_length: int,
        full_length: bool = False,
    ):
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.max_text_length = max_text_length
        self.padded_length = max_text_length if full_length else None

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        image_size: int | tuple[int, int],
        positions: int,
        full_length: bool = False,
        **source: Any,
    ) -> "PairProcessor":
        """The processors that lie with a model.

        Args:
            positions: tokens that the model takes at most.
            source: `revision`, `trust_remote_code`.

        Raises:
            ValueError: its tokenizer needs a package that is not installed, or its files are not there.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **source)
        except ImportError as error:  # SentencePiece, for SigLIP
            raise missing_from_baselines(f"{name}: its tokenizer", error) from error
        check_knows_words(tokenizer, f"the tokenizer of {name}")
        # Beside torchvision the automatic choice is another backend, whose pixels differ slightly.
        image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", **source)
        return cls(
            image_processor,
            tokenizer,
            image_size=image_size,
            max_text_length=min(positions, tokenizer.model_max_length),
            full_length=full_length,
        )

    def __call__(
        self, images: list[Image.Image] | None = None, text: list[str] | None = None
    ) -> BatchFeature:
        """See `RetrievalProcessor`.

        Raises:
            ValueError: for an empty caption, naming its position.
        """
        features = {}
        if images is not None:
            inputs = self.image_processor(resized_before(self.image_processor, images), return_tensors="pt")
            features |= {name: inputs[name] for name in IMAGE_INPUTS if name in inputs}
        if text is not None:
            check_captions(text)
            if self.padded_length is not None:
                # SigLIP's own tokenizer does so; SigLIP 2's fixed-size checkpoints come with Gemma's.
                text = [caption.lower() for caption in text]
            inputs = self.tokenizer(
                text,
                padding=True,
                truncation=True,
                max_length=self.max_text_length,
                return_attention_mask=True,
                return_token_type_ids=False,
                return_tensors="pt",
            )
            padding_id = cast(int, self.tokenizer.pad_token_id)
            features["input_ids"] = self._padded(inputs["input_ids"], padding_id)
            features["attention_mask"] = self._padded(inputs["attention_mask"], 0)
        return BatchFeature(features)

    def _padded(self, rows: Tensor, value: int) -> Tensor:
        """(T, L) to the full length, on the tokenizer's side."""
        if self.padded_length is None:
            return rows
        missing = self.padded_length - rows.shape[1]
        return F.pad(
            rows, (missing, 0) if self.tokenizer.padding_side == "left" else (0, missing), value=value
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """The two processors' own files, which AutoProcessor finds as well."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
