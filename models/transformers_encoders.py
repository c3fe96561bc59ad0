"""Dual encoders of transformers: CLIP, SigLIP, SigLIP 2, AltCLIP, and whatever has the same two methods."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from ..configuration_tpas import height_and_width, number_if_square
from ..modeling_tpas import check_loaded
from .dual_encoder import INITIAL_TEMPERATURE, DualEncoder
from .loading import OTHER_TOKENIZER, check_vocabulary
from .model_files import check_before_building
from .pair_processor import PairProcessor

# Trained on captions padded to their full length, without a mask: the last token, mostly padding, is pooled.
FULL_LENGTH_FAMILIES = ("siglip", "siglip2")
OTHER_IMAGE_PROCESSOR = (
    "preprocessor_config.json belongs to another model; put the one into the folder that it was trained with"
)
# Of whom transformers' own table says nothing, or less than is published. SigLIP 2 of one size is a "siglip".
TOKENIZERS = {
    "siglip": {"SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer", "T5Tokenizer"},
    "siglip2": {"Siglip2Tokenizer", "GemmaTokenizer"},
    "altclip": {"XLMRobertaTokenizer"},
}
LEAST_WORDS = 0.9  # of the model's: tables have room left for a few, CLIP's less BERT's are 0.62 of CLIP's
METHODS = ("get_image_features", "get_text_features")


class TransformersDualEncoder(DualEncoder):
    """A transformers model with `get_image_features` and `get_text_features`."""

    def __init__(self, network: PreTrainedModel, name_or_path: str, temperature: float = INITIAL_TEMPERATURE):
        super().__init__(network, name_or_path, temperature)
        self.masks_padding = network.config.model_type not in FULL_LENGTH_FAMILIES
        heads = ("visual_projection", "text_projection", "text_model.head")
        present = dict(network.named_modules())
        self.trained_with_lora = ("temperature", *(f"network.{head}" for head in heads if head in present))

    def embed_images(self, pixel_values: Tensor, **more: Tensor) -> Tensor:
        return self._pooled(self.network.get_image_features(pixel_values, **more), "get_image_features")

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask if self.masks_padding else None
        return self._pooled(
            self.network.get_text_features(input_ids, attention_mask=mask), "get_text_features"
        )

    def _pooled(self, output: Any, method: str) -> Tensor:
        embeds = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
        if embeds is None or embeds.ndim != 2:
            raise ValueError(
                f"{self.name_or_path}: {type(self.network).__name__}.{method} gives no embedding"
            )
        return embeds


def load_transformers_encoder(
    name: str, dtype: torch.dtype | None, spec: str, **source: Any
) -> tuple[TransformersDualEncoder, PairProcessor]:
    """A dual encoder by folder or Hub name.

    Args:
        spec: what the user called it.
        source: `revision`, `trust_remote_code`.

    Raises:
        ValueError: the model lacks one of the two methods, or its weights are incomplete.
    """
    config = AutoConfig.from_pretrained(name, **source)
    network_class: Any = AutoModel._model_mapping.get(type(config), None)
    if network_class is not None:  # it is the repository's own code
        refuse_without_methods(name, network_class)
    network = load_complete(AutoModel, name, dtype, **source)
    refuse_without_methods(name, type(network))
    model = TransformersDualEncoder(network, spec)
    processor = PairProcessor.from_pretrained(
        name,
        image_size=image_size_of(name, config),
        positions=positions_of(name, config),
        full_length=not model.masks_padding,
        **source,
    )
    check_tokenizer(name, config, processor.tokenizer)
    check_pixels(name, model, processor)
    return model, processor


def check_tokenizer(name: str, config: Any, tokenizer: Any) -> None:
    """Raises ValueError for a tokenizer that is, by its class or the number of its words, of another model.

    One of equal class and size cannot be told from the model's own.
    """
    whose = f"the tokenizer of {name}"
    if words := getattr(getattr(config, "text_config", None), "vocab_size", 0):
        check_vocabulary(tokenizer, config, whose, OTHER_TOKENIZER)
        if len(tokenizer) < LEAST_WORDS * words:
            raise ValueError(f"{whose} has {len(tokenizer)} words, the model {words}: {OTHER_TOKENIZER}")
    of_model = TOKENIZER_MAPPING_NAMES.get(config.model_type)
    fitting = TOKENIZERS.get(config.model_type, {of_model} if of_model else set())
    own_class = type(tokenizer).__name__.removesuffix("Fast")
    # Many are saved under a class that says nothing.
    if fitting and own_class in {*TOKENIZER_MAPPING_NAMES.values()} - {*fitting, "TokenizersBackend"}:
        raise ValueError(
            f"{whose} is a {own_class}, a {config.model_type} model's a {' or '.join(sorted(fitting))}: "
            f"{OTHER_TOKENIZER}"
        )


@torch.inference_mode()
def check_pixels(name: str, model: DualEncoder, processor: PairProcessor) -> None:
    """Raises ValueError for an image processor that makes of an image what the model does not take."""
    features = processor(images=[Image.new("RGB", (64, 48))])
    pixels = tuple(features["pixel_values"].shape)
    size = getattr(model.config.vision_config, "image_size", None)
    if len(features) == 1 and size is not None and pixels == (1, 3, *height_and_width(size)):
        return
    try:  # some take images of any size
        model.get_image_features(**features)
    except Exception as error:
        made = f"{type(processor.image_processor).__name__} makes {pixels} of an image"
        raise ValueError(
            f"{name}: its {made}, and the model takes no such: {OTHER_IMAGE_PROCESSOR} ({error})"
        ) from error


def refuse_without_methods(name: str, network_class: type) -> None:
    """Raises ValueError if the class lacks a method of a dual encoder."""
    lacking = [method for method in METHODS if not hasattr(network_class, method)]
    if lacking:
        raise ValueError(
            f"{name}: {network_class.__name__} has no {' and no '.join(lacking)}, so it gives no embeddings "
            "to search by; a vision-language model may serve as stage 2: --matcher vlm:NAME"
        )


def load_complete(
    network_class: Any,
    name: str | Path,
    dtype: torch.dtype | str | None,
    beside: str | None = None,
    **source: Any,
) -> Any:
    """A network by the `from_pretrained` of its class, in `dtype` or as it is kept.

    Args:
        beside: see [`check_loaded`].

    Raises:
        ValueError: weights are missing, unexpected or not finite, or see [`check_before_building`].
    """
    check_before_building(network_class, name, **source)
    settings = source if dtype is None else source | {"dtype": dtype}
    network, loading = network_class.from_pretrained(name, output_loading_info=True, **settings)
    check_loaded(name, network, loading, beside)
    return network


def image_size_of(name: str, config: Any) -> int | tuple[int, int]:
    """Pixels a side or (height, width), and what a square image would have where images keep their shape.

    Raises:
        ValueError: the configuration does not say.
    """
    vision: Any = getattr(config, "vision_config", None)
    if (size := getattr(vision, "image_size", None)) is not None:
        return number_if_square(size)
    if (patches := getattr(vision, "num_patches", None)) is not None:
        return round(patches**0.5) * vision.patch_size
    raise ValueError(f"{name}: its configuration does not say how large its images are")


def positions_of(name: str, config: Any) -> int:
    """Tokens that the text encoder takes at most.

    Raises:
        ValueError: the configuration does not say.
    """
    text: Any = getattr(config, "text_config", None)
    if not hasattr(text, "max_position_embeddings"):
        raise ValueError(f"{name}: its configuration does not say how many tokens it takes")
    # RoBERTa counts positions from after its padding token's id.
    offset = text.pad_token_id + 1 if text.model_type in ("altclip_text_model", "xlm-roberta") else 0
    return text.max_position_embeddings - offset
