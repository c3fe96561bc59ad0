"""What a run starts from: the model and its processor, and the objective over it."""

import hashlib
import logging
from typing import Any, cast

import torch
from torch import nn

from ..configuration_tpas import TPASConfig
from ..modeling_tpas import TPASModel, check_loaded
from ..models.dual_encoder import DualEncoder
from ..models.interface import RetrievalModel, RetrievalProcessor, can_match
from ..models.loading import (
    MODEL_FILES,
    OTHER_TOKENIZER,
    adapter_folder,
    check_vocabulary,
    is_adapter,
    is_tpas,
    load_model,
    load_processor,
    load_tpas,
)
from ..models.lora import add_lora
from ..models.model_files import check_before_building, explained_damage
from ..processing_tpas import TPASProcessor
from .arguments import FineTuningArguments
from .masked_language_modelling import MaskedLanguageModelling
from .objective import FineTuningObjective

logger = logging.getLogger(__name__)

ENCODERS = ("vision_model", "text_model")  # without which there is nothing to fine-tune


def load_start(arguments: FineTuningArguments) -> tuple[RetrievalModel, RetrievalProcessor, set[str]]:
    """The start model in fp32, its processor, and the names of the parameters that its checkpoint lacks.

    With random weights no parameter is newer than another: the set is empty.

    Raises:
        ValueError: the checkpoint is of another architecture, or damaged, or its processor is of another
            image size, or it is an adapter and another one is asked for.
    """
    name, missing = cast(str, arguments.model_name_or_path or arguments.config_name), set()
    if arguments.model_name_or_path is not None:
        name = adapter_folder(name, arguments.revision)
    if arguments.model_name_or_path is None:
        model = TPASModel(TPASConfig.from_pretrained(name))
    elif is_adapter(name) and arguments.lora_rank:
        raise ValueError(
            f"--lora_rank would make an adapter over what the adapter {name} makes of its start, which is in "
            "no folder: start from the whole model that --merge writes"
        )
    elif not is_tpas(name, arguments.revision, arguments.base_model):
        model, processor = load_model(
            name,
            trust_remote_code=arguments.trust_remote_code,
            revision=arguments.revision,
            base_model=arguments.base_model,
        )
        refuse_with_other_models(arguments, model)
        cast(DualEncoder, model).train_all()
        return model, processor, missing
    elif is_adapter(name):
        model, _ = load_tpas(name, revision=arguments.revision, base_model=arguments.base_model)
        model.requires_grad_(True)  # peft left it frozen
    else:
        check_before_building(TPASModel, name, revision=arguments.revision)
        with explained_damage(name, MODEL_FILES):
            loaded = TPASModel.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True, revision=arguments.revision
            )
        model, loading = cast(tuple[TPASModel, dict[str, Any]], loaded)
        missing = whole_parts(model, set(loading["missing_keys"]))
        check_loaded(name, model, loading | {"missing_keys": set(loading["missing_keys"]) - missing})
        if missing:
            parts = sorted({key.partition(".")[0] for key in missing})
            logger.warning("%s has no %s: drawn at random, to be trained", name, " and no ".join(parts))
    processor = load_processor(name, arguments.revision)
    check_vocabulary(processor.tokenizer, model.config, f"the tokenizer of {name}", OTHER_TOKENIZER)
    image_size = model.config.vision_config.image_size
    if processor.image_size != image_size:
        raise ValueError(
            f"{name}: the model takes images of {image_size} pixels, its processor makes them "
            f"{processor.image_size}: convert the checkpoint again with one --image_size"
        )
    return model, processor, missing


def whole_parts(model: TPASModel, missing: set[str]) -> set[str]:
    """Those of the missing parameters whose whole part is missing, such as a head that another task lacks.

    Where a part is there but for some, its file is cut off, or the names are another model's.
    """
    return {
        f"{part}.{name}"
        for part, module in model.named_children()
        if part not in ENCODERS and (names := dict(module.named_parameters()).keys())
        if all(f"{part}.{name}" in missing for name in names)
        for name in names
    }


def start_fingerprint(arguments: FineTuningArguments, model: RetrievalModel, missing: set[str]) -> str:
    """16 hexadecimal digits for the weights that a run starts from, wherever they lie.

    Of parameters that start from random weights the names and shapes alone.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        if arguments.config_name is None and name not in missing:
            digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def refuse_with_other_models(arguments: FineTuningArguments, model: RetrievalModel) -> None:
    """Raises ValueError for a setting that needs a TPAS model, or a model with a stage 2, if it is none."""
    standard = FineTuningArguments(data_root="", output_dir="", model_name_or_path="")
    of_ours = ("masked_language_modelling_weight", "layer_decay", "torch_compile")
    of_matching = () if can_match(model) else ("hard_negatives", "negatives", "fusion_weight")
    for names, models in ((of_ours, "TPAS models"), (of_matching, "models with a stage 2 of their own")):
        for name in names:
            if (value := getattr(arguments, name)) != getattr(standard, name):
                raise ValueError(f"--{name} {value} is for {models}, and {model.name_or_path} is none")


def refuse_with_fsdp(arguments: FineTuningArguments) -> None:
    """Raises ValueError for what needs whole weights where FSDP has cut them, and for models of others."""
    name = arguments.model_name_or_path
    if name is not None and not is_tpas(name, arguments.revision, arguments.base_model):
        raise ValueError(
            f"FSDP is for TPAS models, and {name} is none: use recipes/accelerate/multi_gpu.yaml"
        )
    for name in ("cached_chunk_size", "ema_decay", "average_last_epochs", "masked_language_modelling_weight"):
        if getattr(arguments, name):
            raise ValueError(
                f"--{name} does not work with FSDP, which cuts the weights: use "
                "recipes/accelerate/multi_gpu.yaml"
            )


def build_objective(
    arguments: FineTuningArguments, model: RetrievalModel, processor: RetrievalProcessor
) -> FineTuningObjective:
    """The model, or a new adapter over it, with the losses that are switched on."""
    trained: nn.Module = cast(nn.Module, model)
    if arguments.lora_rank:
        targets = arguments.lora_targets
        trained = add_lora(
            model,
            arguments.lora_rank,
            arguments.lora_alpha,
            arguments.lora_dropout,
            targets,
            arguments.revision,
        )
    if arguments.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if arguments.torch_compile:
        ours = cast(TPASModel, model)  # others were refused
        for encoder in (ours.vision_model, ours.text_model, ours.cross_modal_encoder):
            encoder.compile(backend=arguments.torch_compile_backend)
    masked_language_modelling = None
    if arguments.masked_language_modelling_weight:
        tokenizer = cast(TPASProcessor, processor).tokenizer
        masked_language_modelling = MaskedLanguageModelling(
            model.config.text_config.hidden_size,
            tokenizer.mask_token_id,
            sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)),
            arguments.masked_share,
            random_share=0.1,
            kept_share=0.1,
        )
    return FineTuningObjective(
        trained,
        label_smoothing=arguments.label_smoothing,
        global_negatives=arguments.negatives == "global",
        second_view_weight=arguments.second_view_weight,
        masked_language_modelling=masked_language_modelling,
        masked_language_modelling_weight=arguments.masked_language_modelling_weight,
    )


def new_names(objective: FineTuningObjective, missing: set[str]) -> set[str]:
    """The objective's names of the parameters that no checkpoint has: those `missing`, and its own heads."""

    def plain(name: str) -> str:  # as the start model calls it, without the wrappers of an adapter
        return (
            name.removeprefix("model.")
            .removeprefix("base_model.model.")
            .replace(".modules_to_save.default", "")
        )

    names = (name for name, _ in objective.named_parameters())
    return {name for name in names if plain(name) in missing or not name.startswith("model.")}
