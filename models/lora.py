"""Low-rank adaptation (LoRA, https://arxiv.org/abs/2106.09685) by peft, of TPAS and other retrieval models.

An adapter is a few megabytes beside its start model: low-rank updates of the attention of all encoders, and
the small heads and the temperature whole. `loading.load_model` takes adapters and whole models alike.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from .dual_encoder import DualEncoder
from .interface import RetrievalModel

# Queries and values of the three encoders: Swin names them one way, BERT and the cross-modal encoder another.
DEFAULT_TARGETS = r".*\.(q_proj|v_proj|query|value)"
TRAINED_WHOLE = ["image_projection", "text_projection", "matching_head", "temperature"]
EVERY_LINEAR_LAYER = "all-linear"


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps back what transformers says about a name that peft still asks it for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def add_lora(
    model: RetrievalModel, rank: int, alpha: float, dropout: float, targets: str | None = None
) -> PeftModel:
    """Freezes the model but for its heads and temperature, and adds trainable low-rank updates.

    Args:
        model: a `TPASModel`, or a `DualEncoder`, which says its own `lora_targets` and `trained_with_lora`.
        alpha: the updates are scaled by alpha / rank.
        targets: a regular expression of module names; "all-linear": every linear layer but the heads;
            `None`: queries and values.

    Raises:
        ValueError: no module has such a name, or it is no regular expression.
    """
    own_layers, whole = DEFAULT_TARGETS, TRAINED_WHOLE
    if isinstance(model, DualEncoder):
        own_layers, whole = model.lora_targets, list(model.trained_with_lora)
    layers = targets or own_layers
    network = cast(nn.Module, model)
    if targets != EVERY_LINEAR_LAYER:
        try:
            re.compile(layers)
        except re.error as error:
            raise ValueError(f"--lora_targets {targets!r} is no regular expression: {error}") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),  # a factor, whatever peft's annotation says
        lora_dropout=dropout,
        target_modules=linear_layers(network, whole) if targets == EVERY_LINEAR_LAYER else layers,
        modules_to_save=whole,
    )
    try:
        with _quietly():
            return get_peft_model(network, config)
    except ValueError as error:
        raise ValueError(f"--lora_targets {layers!r} fits no layer of the model: {error}") from error


def linear_layers(model: nn.Module, but: list[str]) -> list[str]:
    """The names of all linear layers but those in the modules `but` and inside torch's own attention."""
    skipped = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not any(name == part or name.startswith(f"{part}.") for part in (*but, *skipped))
    ]


def merge_adapter(model: RetrievalModel, name: str) -> RetrievalModel:
    """The model with the updates of an adapter's folder in its weights."""
    with _quietly():
        adapted = PeftModel.from_pretrained(cast(nn.Module, model), name)
        return cast(RetrievalModel, adapted.merge_and_unload())
