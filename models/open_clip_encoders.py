"""Dual encoders of open_clip, EVA-CLIP among them.

What a name may be:

    open_clip:EVA02-B-16/merged2b_s8b_b131k      an architecture, and a tag or file of its weights
    open_clip:timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k    a Hub repository
    open_clip:outputs/run/best                   a folder in open_clip's own layout, as fine-tuning writes it
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BatchFeature

from ..configuration_tpas import check_sizes, number_if_square
from ..data.json_records import read_json
from ..data.whole_files import open_by_umask
from ..modeling_tpas import check_loaded
from ..processing_tpas import check_captions
from .baselines_extra import import_from_baselines
from .dual_encoder import ATTENTION_LAYERS, DualEncoder

# open_clip's own names, read by its "local-dir:".
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
FILES = [CONFIG_FILE, "open_clip_model.*", "open_clip_pytorch_model.bin", "*token*", "*.txt", "special*"]
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}


class OpenClipEncoder(DualEncoder):
    """A model of open_clip.

    Args:
        model_config: what builds its network, as open_clip keeps it beside weights.
    """

    # Text encoders of open_clip have torch's own attention, whose projections are one matrix.
    lora_targets = rf"{ATTENTION_LAYERS}|.*\.resblocks\.\d+\.attn"

    def __init__(self, network: nn.Module, name_or_path: str, model_config: dict[str, Any]):
        super().__init__(network, name_or_path)
        self.model_config = model_config

    @property
    def config(self) -> dict[str, Any]:
        return self.model_config

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        return self.network.encode_image(pixel_values)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.network.encode_text(input_ids)

    def save_pretrained(self, folder: str | Path) -> None:
        """See `RetrievalModel`; the format is open_clip's for the Hub."""
        self.keep_temperature()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE)
        config = {"model_cfg": self.model_config, "preprocess_cfg": self.network.visual.preprocess_cfg}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
        open_by_umask(folder)

    def activation_checkpointing_enable(self, settings: dict[str, Any]) -> None:
        """Recomputes activations going backwards."""
        self.network.set_grad_checkpointing(True)


class OpenClipProcessor:
    """open_clip's own transform of images and its tokenizer as a `RetrievalProcessor`.

    Args:
        transform: an image to (3, H, W).
        tokenizer: captions to ids (T, positions).
        pixel_settings: what the transform was made of, by which galleries are told apart.
    """

    def __init__(
        self,
        transform: Any,
        tokenizer: Any,
        image_size: int | tuple[int, int],
        positions: int,
        pixel_settings: dict[str, Any] | None = None,
    ):
        self.transform = transform
        self.pixel_settings = pixel_settings or {}
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.positions = positions
        self.max_text_length = positions
        self.padding_id = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None) or 0

    def __call__(
        self, images: list[Image.Image] | None = None, text: list[str] | None = None
    ) -> BatchFeature:
        """See `RetrievalProcessor`.

        Raises:
            ValueError: for an empty caption, naming its position.
        """
        features = {}
        if images is not None:
            features["pixel_values"] = torch.stack([self.transform(image) for image in images])
        if text is not None:
            check_captions(text)
            ids = self.tokenizer(text, context_length=self.max_text_length)
            # The model takes all its positions, and looks at the end of the caption alone.
            ids = F.pad(ids, (0, self.positions - ids.shape[1]), value=self.padding_id)
            features |= {"input_ids": ids, "attention_mask": (ids != self.padding_id).long()}
        return BatchFeature(features)

    def save_pretrained(self, folder: str | Path) -> None:
        """Nothing to write but a tokenizer of transformers: the rest is in the model's configuration."""
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)


def load_open_clip(
    place: str, dtype: torch.dtype | None, spec: str, revision: str | None = None
) -> tuple[OpenClipEncoder, OpenClipProcessor]:
    """A model of open_clip; see the top of the file for places.

    Raises:
        OSError: there is no such folder or Hub repository.
        ValueError: open_clip is not installed, cannot be imported, or does not know the name.
    """
    open_clip = import_from_baselines("open_clip")
    architecture, _, weights = place.partition("/")
    if architecture in open_clip.list_models() and not Path(place).is_dir():
        if revision is not None:
            raise ValueError(
                f"--revision {revision} is of a Hub repository, and open_clip:{place} names none"
            )
        if not weights:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
            raise ValueError(f"open_clip:{place} names no weights: add /TAG, one of {tags}, or /FILE")
        name, settings = architecture, {"pretrained": weights}
        config = open_clip.get_model_config(architecture)
    else:
        folder = Path(place)
        if not folder.is_dir():
            folder = Path(snapshot_download(place, revision=revision, allow_patterns=FILES))
        if not (folder / CONFIG_FILE).is_file():
            raise ValueError(f"{place} has no {CONFIG_FILE}: it is no model of open_clip")
        if not any(path.suffix in WEIGHTS for path in folder.iterdir()):  # it would draw them at random
            raise ValueError(f"{place} has no weights, such as {WEIGHTS_FILE}: get them again")
        name, settings = f"local-dir:{folder}", {}
        config = read_json(folder / CONFIG_FILE)["model_cfg"]
    check_sizes(config, f"open_clip:{place}")
    if "trust_remote_code" in json.dumps(config):
        raise ValueError(f"open_clip:{place}: its {CONFIG_FILE} asks for code of others to be run: refused")
    try:
        network, _, transform = open_clip.create_model_and_transforms(name, **settings)
    except (RuntimeError, ValueError) as error:  # an unknown tag, or weights that do not fit
        raise ValueError(f"open_clip:{place}: {str(error).strip().splitlines()[0]}") from error
    check_loaded(f"open_clip:{place}", network)
    tokenizer = open_clip.get_tokenizer(name)
    return open_clip_pair(network if dtype is None else network.to(dtype), transform, tokenizer, spec, config)


def is_known_to_open_clip(place: str) -> bool:
    """Whether it begins with one of open_clip's own architectures, whose weights open_clip names."""
    architecture, _, _ = place.partition("/")
    return architecture in import_from_baselines("open_clip").list_models()


def open_clip_pair(
    network: Any, transform: Any, tokenizer: Any, spec: str, config: dict[str, Any]
) -> tuple[OpenClipEncoder, OpenClipProcessor]:
    """What open_clip makes, in our form."""
    size = number_if_square(network.visual.image_size)
    settings = dict(network.visual.preprocess_cfg)
    processor = OpenClipProcessor(transform, tokenizer, size, network.context_length, settings)
    return OpenClipEncoder(network, spec, config), processor
