"""What a model is, in 16 hexadecimal digits: a gallery is searched by the model that encoded it."""

import hashlib
import json
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch

from ..modeling_tpas import TPASModel
from ..processing_tpas import TPASProcessor
from .interface import RetrievalModel, RetrievalProcessor

# What decides an image's features beside the weights; by name, since new versions of transformers add more.
VISION_SETTINGS = (
    *("image_size", "patch_size", "num_channels", "embed_dim", "depths", "num_heads", "window_size"),
    *("mlp_ratio", "qkv_bias", "hidden_act", "use_absolute_embeddings", "layer_norm_eps"),
)
IMAGE_PROCESSOR_SETTINGS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad", "pad_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)
# What other models' settings say of who wrote them, and of no image.
NOT_OF_IMAGES = {
    *("_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "torch_dtype"),
    *("image_processor_type", "processor_class", "feature_extractor_type", "auto_map", "use_fast", "backend"),
    *("text_cfg", "language_model", "language_model_revision"),
}

# A full-size model takes seconds to hash. Kept with what tells that its weights are still the same.
_known: WeakKeyDictionary[torch.nn.Module, tuple[tuple, str]] = WeakKeyDictionary()


def model_fingerprint(model: RetrievalModel) -> str:
    """16 hexadecimal digits that stand for the weights, as fp32: equal wherever the model lies.

    Computed once a process, and again after weights were replaced or changed in place.

    Raises:
        TypeError: the model carries an adapter that is not merged, so its weights are not all that it is.
    """
    if any(hasattr(layer, "base_layer") for layer in cast(torch.nn.Module, model).modules()):
        raise TypeError("an adapter must be merged first: model.merge_and_unload()")
    module = cast(torch.nn.Module, model)
    state = _state_of(module)
    if state is not None and module in _known and _known[module][0] == state:
        return _known[module][1]
    fingerprint = weights_fingerprint(model.state_dict())
    if state is not None:
        _known[module] = (state, fingerprint)
    return fingerprint


def weights_fingerprint(weights: dict[str, Any]) -> str:
    """16 hexadecimal digits for tensors by name, as fp32."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def _state_of(module: torch.nn.Module) -> tuple | None:
    """What changes whenever a weight does, by torch's count of changes in place; None where it keeps none."""
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)


def image_fingerprint(model: RetrievalModel, processor: RetrievalProcessor) -> str:
    """16 hexadecimal digits for what decides images' features beside the weights.

    That is the image encoder's configuration and the image processor's settings. For the tokenizer see
    [`text_fingerprint`].

    Raises:
        TypeError: the processor is that of another kind of model.
    """
    if isinstance(model, TPASModel) != isinstance(processor, TPASProcessor):
        raise TypeError(
            f"a {type(processor).__name__} is the processor of another model than a {type(model).__name__}: "
            "load_model gives both together"
        )
    if isinstance(model, TPASModel) and isinstance(processor, TPASProcessor):
        vision, pixels = model.config.vision_config.to_dict(), processor.image_processor.to_dict()
        known = ((vision, VISION_SETTINGS), (pixels, IMAGE_PROCESSOR_SETTINGS))
    else:
        parts = _vision_settings(model.config), _pixel_settings(processor)
        known = tuple((settings, sorted({*settings} - NOT_OF_IMAGES)) for settings in parts)
    deciding = [
        {name: settings[name] for name in names if settings.get(name) is not None}
        for settings, names in known
    ]
    text = json.dumps(deciding, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _vision_settings(config: Any) -> dict[str, Any]:
    """The image encoder's part of a model's configuration, be it of transformers or a mapping."""
    vision = config if isinstance(config, dict) else getattr(config, "vision_config", config)
    # Of transformers what is not its default: a new version adds settings that change nothing.
    return vision if isinstance(vision, dict) else vision.to_diff_dict()


def _pixel_settings(processor: Any) -> dict[str, Any]:
    """An image processor's settings; of others as they keep them."""
    if (image_processor := getattr(processor, "image_processor", None)) is not None:
        return image_processor.to_dict()
    return {"image_size": processor.image_size} | getattr(processor, "pixel_settings", {})


def text_fingerprint(processor: RetrievalProcessor) -> str | None:
    """16 hexadecimal digits for the tokenizer's words and their numbers: with others the model is another.

    How texts are cut and cleaned is left out: they are encoded anew for each search, so it may change. None
    for a tokenizer that does not list its words.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip's, around one of transformers
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return None
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.blake2b(json.dumps(words).encode(), digest_size=8).hexdigest()
