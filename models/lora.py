"""Low-rank adaptation (LoRA, https://arxiv.org/abs/2106.09685) by peft, of TPAS and other retrieval models.

An adapter is a few megabytes beside its start model: low-rank updates of the attention of all encoders, and
the small heads and the temperature whole. `loading.load_model` takes adapters and whole models alike.

An adapter is worth nothing over other weights. So its folder says where its base lay, by a path or Hub name
that is understood anywhere and the commit, and in `base_model.json` which weights these were.
"""

import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn

from ..data.json_records import read_json
from .dual_encoder import DualEncoder
from .fingerprints import weights_fingerprint
from .interface import RetrievalModel
from .loading import ADAPTER_CONFIG, BASE_FILE, lasting_name
from .model_files import check_type

logger = logging.getLogger(__name__)

# Queries and values of the three encoders: Swin names them one way, BERT and the cross-modal encoder another.
DEFAULT_TARGETS = r".*\.(q_proj|v_proj|query|value)"
TRAINED_WHOLE = ["image_projection", "text_projection", "matching_head", "temperature"]
EVERY_LINEAR_LAYER = "all-linear"


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps back what transformers says about a name that peft still asks it for, and what peft only warns of
    and is refused here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        yield


def add_lora(
    model: RetrievalModel,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | None = None,
    revision: str | None = None,
) -> PeftModel:
    """Freezes the model but for its heads and temperature, and adds trainable low-rank updates.

    Args:
        model: a `TPASModel`, or a `DualEncoder`, which says its own `lora_targets` and `trained_with_lora`.
        alpha: the updates are scaled by alpha / rank.
        targets: a regular expression of module names; "all-linear": every linear layer but the heads;
            `None`: queries and values.
        revision: the commit that the model is of, if it is the Hub's.

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
    fingerprint = fingerprint_beside(network, whole)
    try:
        with _quietly():
            adapted: Any = get_peft_model(network, config, revision=revision)
    except ValueError as error:
        raise ValueError(f"--lora_targets {layers!r} fits no layer of the model: {error}") from error
    config.base_model_name_or_path = lasting_name(model.name_or_path or "") or None
    adapted.base_fingerprint = fingerprint  # `keep_base` writes it
    return adapted


def fingerprint_beside(model: nn.Module, trained_whole: Iterable[str]) -> str:
    """Of the weights that an adapter leaves as they are: all but the modules that it brings whole."""
    brought = re.compile(rf"(^|\.)({'|'.join(map(re.escape, trained_whole))})\.")
    return weights_fingerprint(
        {name: tensor for name, tensor in model.state_dict().items() if not brought.search(name)}
    )


def keep_base(model: nn.Module, folder: Path) -> None:
    """Writes which weights an adapter belongs to beside what its `save_pretrained` wrote; else nothing."""
    if isinstance(model, PeftModel):
        content = json.dumps({"fingerprint": model.base_fingerprint}, indent=2)
        (folder / BASE_FILE).write_text(content + "\n", encoding="utf-8")


def check_base(model: nn.Module, adapter: str, trained: str, here: str) -> None:
    """Compares the weights that an adapter is to be merged into with those that it was trained over.

    Args:
        trained, here: the names of the two.

    Raises:
        ValueError: they are others.
    """
    file = Path(adapter, BASE_FILE)
    if not file.is_file():
        logger.warning("%s does not say which weights it belongs to: %s is taken unchecked", adapter, here)
        return
    settings = read_json(Path(adapter, ADAPTER_CONFIG))
    expected = read_json(file)["fingerprint"]
    found = fingerprint_beside(model, settings["modules_to_save"])
    if found != expected:
        raise ValueError(
            f"{adapter} was trained over {trained} as it was then (fingerprint {expected}), and {here} has "
            f"other weights ({found}): name the folder that holds the former by --base_model, or train again"
        )


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
    """The model with the updates of an adapter's folder in its weights.

    Raises:
        OSError: its weights are not there.
        ValueError: they are not those that its configuration says, or not finite.
    """
    file = Path(name, SAFETENSORS_WEIGHTS_NAME)
    if not file.is_file():
        raise FileNotFoundError(f"{name}: the adapter has no {file.name}: get its files again")
    settings = read_json(Path(name, ADAPTER_CONFIG))
    try:
        with safe_open(file, "pt") as tensors:
            found = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or cut off ({error}); get the file again") from error
    for key, tensor in found.items():
        check_type(str(tensor.dtype), key, file)
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {key} is not finite: the training diverged, or the file is damaged")
    ranks = [len(tensor) for key, tensor in found.items() if "lora_A" in key]
    if not ranks or settings.get("r") not in ranks:  # peft would build whatever is asked for
        raise ValueError(
            f"{name}: {ADAPTER_CONFIG} says rank {settings.get('r')}, and {file.name} has "
            f"{sorted(set(ranks)) or 'none'}: get its files again"
        )
    with _quietly():
        adapted = PeftModel.from_pretrained(cast(nn.Module, model), name)
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        if different := sorted(expected ^ found.keys()):
            which = "lacks" if different[0] in expected else "has, beside its own,"
            raise ValueError(
                f"{name}: {file.name} and {ADAPTER_CONFIG} do not belong together: {len(different)} weights "
                f"differ; the former {which} {different[0]}; get its files again"
            )
        return cast(RetrievalModel, adapted.merge_and_unload())
