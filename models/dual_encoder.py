"""What models of two encoders share: unit-norm embeddings, and the temperature of the contrastive loss."""

import math
import re
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.whole_files import open_by_umask
from ..modeling_tpas import TEMPERATURE_RANGE, Temperature
from .interface import Features

# Queries and values of attention, as CLIP, BERT and timm name them.
ATTENTION_LAYERS = r".*\.(q_proj|v_proj|query|value|qkv)"
INITIAL_TEMPERATURE = 0.07


def as_features(embeds: Tensor, states: Tensor | None = None) -> Features:
    """Embeddings (B, D) of any norm, and what `match` reads of B inputs."""
    output = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=F.normalize(embeds, dim=-1))
    return cast(Features, output)  # to transformers the embeddings may be None as well


class DualEncoder(nn.Module):
    """A network of another library as a `RetrievalModel`.

    The temperature is a module, as in `TPASModel`, so that peft can train and keep it; the network's own
    `logit_scale` is its reciprocal's logarithm, read here and written when the model is saved.

    Args:
        network: whose parameters are the model's.
        name_or_path: what loads it; an adapter's file names its start by it.

    Attributes:
        lora_targets: a regular expression of the layers that LoRA updates where none are asked for.
        trained_with_lora: the modules that are trained whole beside them.
        without_gradient: a regular expression, searched for in the names of the parameters that no loss of
            ours reaches.
    """

    base_model_prefix = "network"  # transformers asks for it where a layer is adapted
    lora_targets = ATTENTION_LAYERS
    trained_with_lora: tuple[str, ...] = ("temperature",)
    without_gradient = r"^logit_(scale|bias)$"

    network: Any  # a module, with whatever its library has beside

    def __init__(self, network: nn.Module, name_or_path: str, temperature: float = INITIAL_TEMPERATURE):
        super().__init__()
        self.network = network
        self.name_or_path = name_or_path
        self.train_all()
        if (scale := getattr(network, "logit_scale", None)) is not None:
            temperature = math.exp(-scale.detach().float().mean().item())
        self.temperature = Temperature(temperature)

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def train_all(self) -> None:
        """Lets every parameter be trained that a loss reaches: DDP waits for the gradients of all these."""
        self.requires_grad_(True)
        for name, parameter in self.network.named_parameters():
            if re.search(self.without_gradient, name):
                parameter.requires_grad_(False)

    def embed_images(self, pixel_values: Tensor, **more: Tensor) -> Tensor:
        """(B, D), of any norm; `more` is what some models need beside pixels, by its name."""
        raise NotImplementedError

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, D), of any norm."""
        raise NotImplementedError

    def get_image_features(self, pixel_values: Tensor, **more: Tensor) -> Features:
        """See `Encoder`."""
        return as_features(self.embed_images(pixel_values, **more))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """See `Encoder`."""
        return as_features(self.embed_texts(input_ids, attention_mask))

    def trained_temperature(self) -> float:
        """As the contrastive loss uses it."""
        return self.temperature.value.detach().clamp(*TEMPERATURE_RANGE).item()

    @torch.no_grad()
    def keep_temperature(self) -> None:
        """Writes the temperature where the network's own library keeps it, if it does."""
        if (scale := getattr(self.network, "logit_scale", None)) is not None:
            scale.fill_(-math.log(self.trained_temperature()))

    def save_pretrained(self, folder: str | Path) -> None:
        """See `RetrievalModel`."""
        self.keep_temperature()
        self.network.save_pretrained(folder)
        open_by_umask(Path(folder))

    def activation_checkpointing_enable(self, settings: dict[str, Any]) -> None:
        """Recomputes activations going backwards; as `PreTrainedModel` has it.

        Raises:
            ValueError: the network cannot.
        """
        if not getattr(self.network, "supports_gradient_checkpointing", False):
            raise ValueError(f"--gradient_checkpointing: {self.name_or_path} cannot recompute activations")
        self.network.activation_checkpointing_enable(settings)
        # Some then ask frozen word embeddings for a gradient: that fails in BLIP, and recomputing without
        # reentrance does not need it.
        self.network.disable_input_require_grads()
