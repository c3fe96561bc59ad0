"""A transformers image processor and tokenizer in the form of a `RetrievalProcessor`."""

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, PreTrainedTokenizerBase

IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class PairProcessor:
    """Pictures and captions as the model was trained on them; pixels come from Pillow, on every machine.

    Args:
        image_size: pixels a side of what the model sees.
        max_text_length: tokens at which a caption is cut.
        padding: "longest" of a call, or "max_length" for models that were trained so.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        image_size: int,
        max_text_length: int,
        padding: str = "longest",
    ):
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.max_text_length = max_text_length
        self.padding = padding

    @classmethod
    def from_pretrained(
        cls, name: str, *, image_size: int, positions: int, padding: str = "longest", **source: Any
    ) -> "PairProcessor":
        """The processors that lie with a model.

        Args:
            positions: tokens that the model takes at most.
            source: `revision`, `trust_remote_code`.
        """
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        # Beside torchvision the automatic choice is another backend, whose pixels differ slightly.
        image_processor = AutoImageProcessor.from_pretrained(name, backend="pil", **source)
        return cls(
            image_processor,
            tokenizer,
            image_size=image_size,
            max_text_length=min(positions, tokenizer.model_max_length),
            padding=padding,
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
            inputs = self.image_processor(images, return_tensors="pt")
            features |= {name: inputs[name] for name in IMAGE_INPUTS if name in inputs}
        if text is not None:
            for position, caption in enumerate(text):
                if not caption.strip():
                    raise ValueError(f"caption {position} is empty")
            features |= self.tokenizer(
                text,
                padding=self.padding,
                truncation=True,
                max_length=self.max_text_length,
                return_attention_mask=True,
                return_token_type_ids=False,
                return_tensors="pt",
            )
        return BatchFeature(features)

    def save_pretrained(self, folder: str | Path) -> None:
        """The two processors' own files, which AutoProcessor finds as well."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
