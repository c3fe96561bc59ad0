"""Low-rank adaptation (LoRA, https://arxiv.org/abs/2106.09685) by peft, of TPAS and other retrieval models.

An adapter is a few megabytes beside its start model: low-rank updates of the attention of all encoders, and
the small heads and the temperature whole. `load_model` takes adapters and whole TPAS models alike.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME
from torch import nn
from transformers import PretrainedConfig

from ..configuration_tpas import TPASConfig
from ..modeling_tpas import TPASModel

# Queries and values of the three encoders: Swin names them one way, BERT and the cross-modal encoder another.
DEFAULT_TARGETS = r".*\.(q_proj|v_proj|query|value)"
TRAINED_WHOLE = ["image_projection", "text_projection", "matching_head", "temperature"]
EVERY_LINEAR_LAYER = "all-linear"
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps back what transformers says about a name that peft still asks it for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def add_lora(
    model: nn.Module, rank: int, alpha: float, dropout: float, targets: str | None = None
) -> PeftModel:
    """Freezes the model but for its heads and temperature, and adds trainable low-rank updates.

    Args:
        model: a `TPASModel`, or another that says its own `lora_targets` and `trained_with_lora`.
        alpha: the updates are scaled by alpha / rank.
        targets: a regular expression of module names; "all-linear": every linear layer but the heads;
            `None`: queries and values.

    Raises:
        ValueError: no module has such a name, or it is no regular expression.
    """
    whole = list(getattr(model, "trained_with_lora", TRAINED_WHOLE))
    layers: str | list[str] = targets or getattr(model, "lora_targets", DEFAULT_TARGETS)
    if targets == EVERY_LINEAR_LAYER:
        layers = linear_layers(model, whole)
    else:
        try:
            re.compile(layers)
        except re.error as error:
            raise ValueError(f"--lora_targets {targets!r} is no regular expression: {error}") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=layers,
        modules_to_save=whole,
    )
    try:
        with _quietly():
            return get_peft_model(model, config)
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


def is_adapter(name: str) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (Path(name) / CONFIG_NAME).is_file()


def read_config(name: str, revision: str | None = None) -> dict[str, Any]:
    """What the config.json of a folder or a Hub repository holds.

    What can only be a folder that is not there is refused at once: without a network, half a minute would go
    in asking the Hub for it.

    Raises:
        OSError: there is none; the message names the model.
    """
    place = Path(name)
    if not place.is_dir():
        if place.exists():
            raise NotADirectoryError(f"{name} is a file: give the folder of the model")
        if not HUB_NAME.fullmatch(str(name)) or place.parent.is_dir():
            raise FileNotFoundError(f"{name}: there is no such folder, and the Hub names models OWNER/NAME")
    try:
        config = PretrainedConfig.get_config_dict(name, revision=revision)[0]
    except OSError as error:
        raise OSError(f"the model {name} cannot be loaded: {error}") from error
    if not config:
        raise OSError(f"{name} is neither a model's folder nor its Hub name: it has no config.json")
    return config


def check_architecture(name: str, revision: str | None = None) -> None:
    """Raises OSError if the folder or Hub name is of no model, ValueError if of another architecture."""
    model_type = read_config(name, revision).get("model_type")
    if model_type != TPASConfig.model_type:
        raise ValueError(
            f"{name} is a model of type {model_type!r}, not {TPASConfig.model_type!r}: X-VLM's own files are "
            "made loadable by tpas convert"
        )


def load_model(name: str, dtype: torch.dtype | None = None, revision: str | None = None) -> TPASModel:
    """A whole model by its folder or Hub name, or the model that an adapter's folder and its start make.

    Args:
        revision: the Hub repository's commit.

    Raises:
        OSError: the model, or the adapter's start, is not there.
        ValueError: it is of another architecture.
    """
    settings = {"revision": revision} | ({} if dtype is None else {"dtype": dtype})
    if not is_adapter(name):
        check_architecture(name, revision)
        return TPASModel.from_pretrained(name, **settings)
    start = start_of_adapter(name)
    try:
        check_architecture(start, revision)
        model = TPASModel.from_pretrained(start, **settings)
    except OSError as error:
        raise OSError(f"{name} is an adapter of {start}, which cannot be loaded: {error}") from error
    return merge_adapter(model, name)


def start_of_adapter(name: str) -> str:
    """The folder or Hub name of the model that an adapter's folder belongs to."""
    return PeftConfig.from_pretrained(name).base_model_name_or_path


def merge_adapter(model: nn.Module, name: str) -> nn.Module:
    """The model with the adapter's updates in its weights."""
    with _quietly():
        return PeftModel.from_pretrained(model, name).merge_and_unload()
