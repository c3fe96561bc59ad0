"""Low-rank adaptation (LoRA, https://arxiv.org/abs/2106.09685) of TPAS models, by peft.

An adapter is a few megabytes beside its start model: low-rank updates of the attention of all three encoders,
and the small heads and the temperature whole. `load_model` takes adapters and whole models alike.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils import CONFIG_NAME

from tpas.configuration_tpas import TPASConfig
from tpas.modeling_tpas import TPASModel

# Queries and values of the three encoders: Swin names them one way, BERT and the cross-modal encoder another.
DEFAULT_TARGETS = r".*\.(q_proj|v_proj|query|value)"
TRAINED_WHOLE = ["image_projection", "text_projection", "matching_head", "temperature"]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps back what transformers says about a name that peft still asks it for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def add_lora(
    model: TPASModel, rank: int, alpha: float, dropout: float, targets: str | None = None
) -> PeftModel:
    """Freezes the model but for its heads and temperature, and adds trainable low-rank updates.

    Args:
        alpha: the updates are scaled by alpha / rank.
        targets: a regular expression of module names; `None`: `DEFAULT_TARGETS`.

    Raises:
        ValueError: no module has such a name, or it is no regular expression.
    """
    targets = targets or DEFAULT_TARGETS
    try:
        re.compile(targets)
    except re.error as error:
        raise ValueError(f"--lora_targets {targets!r} is no regular expression: {error}") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=TRAINED_WHOLE,
    )
    try:
        with _quietly():
            return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"--lora_targets {targets!r} fits no layer of the model: {error}") from error


def is_adapter(name: str) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (Path(name) / CONFIG_NAME).is_file()


def check_architecture(name: str) -> None:
    """Raises ValueError if the folder or Hub name is of a model of another architecture."""
    model_type = TPASConfig.get_config_dict(name)[0].get("model_type")
    if model_type != TPASConfig.model_type:
        raise ValueError(
            f"{name} is a model of type {model_type!r}, not {TPASConfig.model_type!r}: X-VLM's own files are "
            "made loadable by convert_checkpoint.py"
        )


def load_model(name: str, dtype: torch.dtype | None = None) -> TPASModel:
    """A whole model by its folder or Hub name, or the model that an adapter's folder and its start make.

    Raises:
        OSError: the model, or the adapter's start, is not there.
        ValueError: it is of another architecture.
    """
    settings = {} if dtype is None else {"dtype": dtype}
    if not is_adapter(name):
        check_architecture(name)
        return TPASModel.from_pretrained(name, **settings)
    start = PeftConfig.from_pretrained(name).base_model_name_or_path
    try:
        check_architecture(start)
        model = TPASModel.from_pretrained(start, **settings)
    except OSError as error:
        raise OSError(f"{name} is an adapter of {start}, which cannot be loaded: {error}") from error
    with _quietly():
        return PeftModel.from_pretrained(model, name).merge_and_unload()
