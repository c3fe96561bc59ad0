"""Turns an upstream checkpoint into a directory for `TPASModel.from_pretrained`, totally or not at all.

Read are X-VLM's fine-tuned retrieval checkpoints, its pre-training checkpoints, and those of CMP, PAB's own
baseline; which of them a file is shows in its keys. A missing, unexpected or mis-shaped key is an error, and
what is left out on purpose is reported.
"""

import json
import logging
import re
import zipfile
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from ..configuration_tpas import XVLM_BASE_TEXT, XVLM_BASE_VISION, TPASConfig
from ..data.whole_files import replacing
from ..modeling_tpas import TPASModel, interpolate_table, is_other_window
from ..processing_tpas import TPASProcessor

logger = logging.getLogger(__name__)

# Applied in this order, they turn a name of TPASModel into upstream's.
UPSTREAM_NAMES = [
    (r"^vision_model\.embeddings\.patch_embeddings\.projection\.", "vision_encoder.patch_embed.proj."),
    (r"^vision_model\.embeddings\.norm\.", "vision_encoder.patch_embed.norm."),
    (r"^vision_model\.layernorm\.", "vision_encoder.norm."),
    (r"^vision_model\.encoder\.", "vision_encoder."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.[qkv]_proj\.", ".attn.qkv."),  # upstream has the three in one matrix
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.relative_position_bias\.", ".attn."),
    (r"^text_model\.", "text_encoder."),
    (r"^cross_modal_encoder\.layers\.", "text_encoder.encoder.layer."),  # numbered on from the text layers
    (r"\.self_attention\.(query|key|value)\.", r".attention.self.\1."),
    (r"\.self_attention\.dense\.", ".attention.output.dense."),
    (r"\.self_attention\.layer_norm\.", ".attention.output.LayerNorm."),
    (r"\.cross_attention\.(query|key|value)\.", r".crossattention.self.\1."),
    (r"\.cross_attention\.dense\.", ".crossattention.output.dense."),
    (r"\.cross_attention\.layer_norm\.", ".crossattention.output.LayerNorm."),
    (r"^(text_encoder\.encoder\.layer\.\d+)\.intermediate\.(weight|bias)$", r"\1.intermediate.dense.\2"),
    (r"^(text_encoder\.encoder\.layer\.\d+)\.output\.(weight|bias)$", r"\1.output.dense.\2"),
    (r"^(text_encoder\.encoder\.layer\.\d+)\.layer_norm\.", r"\1.output.LayerNorm."),
    (r"^image_projection\.", "vision_proj."),
    (r"^text_projection\.", "text_proj."),
    (r"^temperature\.value$", "temp"),
    (r"^matching_head\.dense\.", "itm_head.0."),
    (r"^matching_head\.layer_norm\.", "itm_head.1."),
    (r"^matching_head\.classifier\.", "itm_head.3."),
]
CROSS_MODAL_LAYER = re.compile(r"^cross_modal_encoder\.layers\.(\d+)")
QUERY_KEY_VALUE = re.compile(r"\.attention\.([qkv])_proj\.")
PRETRAINED_TEXT = "text_encoder.bert."  # upstream's pre-training model wraps BERT with a language head

LEFT_OUT = {
    "buffers that the model computes": r"(^|\.)(relative_position_index|attn_mask|position_ids)$",
    "the masked-language head": r"^text_encoder\.cls\.",
    "the box head": r"^bbox_head\.",
    "the ImageNet classifier": r"^vision_encoder\.head\.",
}
# What CMP (https://arxiv.org/abs/2411.17776) has and X-VLM has not. Its embeddings are projections of three
# pooled parts of an image or caption, through a BatchNorm, in place of X-VLM's of one token.
CMP_PARTS = {
    "CMP's pose blocks": r"^pose_(block|conv)\.",
    "CMP's projections of pooled parts": r"^(vision|text)_proj\.\d+\.",
}
# Upstream's names of what a start of another kind lacks.
LACKED_BY_CMP = r"^(vision|text)_proj\."
LACKED_BY_SWIN_AND_BERT = r"^(vision_proj|text_proj|itm_head)\.|^temp$|\.crossattention\."
NEW_WEIGHTS_SEED = 42


@dataclass
class Conversion:
    """What became of a checkpoint.

    Attributes:
        kind: "pre-training", "fine-tuned retrieval", "CMP" or "Swin and BERT".
        state_dict: weights under `TPASModel`'s names; parts of the checkpoint's own memory where possible.
        left_out: for each reason the upstream keys that were left out on purpose.
        interpolated: the upstream keys of relative position tables that were brought to another window.
        new: the upstream keys of what the checkpoint lacks and is drawn at random.
    """

    kind: str
    state_dict: dict[str, Tensor]
    left_out: dict[str, list[str]]
    interpolated: list[str]
    new: list[str]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in an upstream file, `{"model": state_dict, ...}` or the state dict itself.

    Nothing in the file is executed; large files are mapped, and read once for their checksums.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or damaged, no checkpoint, or needs more than tensors and plain Python
            values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        # Only the zip format (torch >= 1.6) can be mapped.
        is_zip = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        if is_zip:  # torch does not look at the checksums, and weights with a wrong bit are weights as well
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
    except Exception as error:  # the unpickler raises nearly anything on a broken file
        refused = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", str(error))
        if refused:
            raise ValueError(
                f"{path}: refused, because it holds a {refused[1]}, and unpickling that could run any code. "
                f"Where you trust the file, save its state dict alone: "
                f"torch.save({{'model': checkpoint['model']}}, ...)."
            ) from error
        raise ValueError(
            f"{path}: damaged, cut off, or no torch checkpoint ({type(error).__name__}); get the file again."
        ) from error
    weights = content.get("model", content) if isinstance(content, dict) else None
    tensors = isinstance(weights, dict) and all(map(torch.is_tensor, weights.values()))
    if not tensors or not weights or not all(isinstance(name, str) for name in weights):
        raise ValueError(f"{path}: holds no state dict, neither at its top nor under 'model'.")
    return weights


def read_json(path: str | Path, required: tuple[str, ...]) -> dict[str, Any]:
    """An upstream configuration file; ValueError if it is no JSON object or lacks a `required` key."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    absent = [key for key in required if not isinstance(content, dict) or key not in content]
    if absent:
        raise ValueError(f"{path}: an upstream configuration of this kind has {absent}, this file has not")
    return content


def vision_settings(path: str | Path | None) -> dict[str, Any]:
    """`SwinConfig` fields of upstream's JSON (`None`: X-VLM base)."""
    settings = deepcopy(XVLM_BASE_VISION)
    if path is not None:
        upstream = read_json(path, ("image_res", "window_size", "embed_dim", "depths", "num_heads"))
        settings["image_size"] = upstream["image_res"]
        settings |= {name: upstream[name] for name in ("window_size", "embed_dim", "depths", "num_heads")}
    return settings


def text_settings(path: str | Path | None) -> tuple[dict[str, Any], int]:
    """`BertConfig` fields of the text layers, and the number of cross-modal layers, of upstream's JSON."""
    if path is None:
        return dict(XVLM_BASE_TEXT), TPASConfig.num_cross_modal_layers
    settings = read_json(path, ("num_hidden_layers", "fusion_layer", "hidden_size", "num_attention_heads"))
    layers, text_layers = settings["num_hidden_layers"], settings["fusion_layer"]
    if not 0 < text_layers < layers:
        raise ValueError(f"{path}: fusion_layer must be between 1 and {layers - 1}, got {text_layers}")
    for foreign in ("architectures", "model_type", "fusion_layer", "encoder_width"):
        settings.pop(foreign, None)
    return settings | {"num_hidden_layers": text_layers}, layers - text_layers


def build_config(
    weights: dict[str, Tensor],
    vision_config: str | Path | None = None,
    text_config: str | Path | None = None,
    image_size: int | None = None,
) -> TPASConfig:
    """The architecture, from upstream's JSON files; only the embeddings' width is taken from the weights."""
    text, num_cross_modal_layers = text_settings(text_config)
    projection = weights.get("vision_proj.weight")
    config = TPASConfig(
        vision_config=vision_settings(vision_config),
        text_config=text,
        num_cross_modal_layers=num_cross_modal_layers,
        projection_dim=TPASConfig.projection_dim if projection is None else len(projection),
    )
    if image_size is not None and image_size != config.vision_config.image_size:
        config.set_image_size(image_size)
    return config


def upstream_name(name: str, num_text_layers: int) -> str:
    """Upstream's name of a `TPASModel` parameter. Each of q_proj, k_proj and v_proj gives that of qkv.

    >>> upstream_name("cross_modal_encoder.layers.1.cross_attention.dense.bias", num_text_layers=6)
    'text_encoder.encoder.layer.7.crossattention.output.dense.bias'
    """
    name = CROSS_MODAL_LAYER.sub(
        lambda match: f"cross_modal_encoder.layers.{int(match[1]) + num_text_layers}", name
    )
    for pattern, replacement in UPSTREAM_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def join_swin_and_bert(swin: str | Path, bert: str | Path) -> dict[str, Tensor]:
    """An ImageNet checkpoint of Swin and a BERT (directory or Hub id) under the names of X-VLM.

    So X-VLM's pre-training starts: BERT's lower layers read text alone, the upper ones also the image.

    Raises:
        FileNotFoundError, ValueError: see [`read_checkpoint`].
    """
    weights = {f"vision_encoder.{name}": tensor for name, tensor in read_checkpoint(swin).items()}
    text_model = BertModel.from_pretrained(bert, add_pooling_layer=False, dtype=torch.float32)
    return weights | {f"text_encoder.{name}": tensor for name, tensor in text_model.state_dict().items()}


def kind_of(weights: dict[str, Tensor]) -> str:
    """The kind of checkpoint that has such keys, see [`Conversion`]."""
    if any(re.search(pattern, name) for pattern in CMP_PARTS.values() for name in weights):
        return "CMP"
    wrapped = any(name.startswith(PRETRAINED_TEXT) for name in weights)
    return "pre-training" if wrapped else "fine-tuned retrieval"


def convert_state_dict(
    weights: dict[str, Tensor], model: TPASModel, kind: str | None = None, drop_cmp_parts: bool = False
) -> Conversion:
    """Renames upstream's weights to those of the model, splitting and resizing where the two differ.

    Args:
        kind: see [`Conversion`]; `None`: by the keys, which tell all kinds but "Swin and BERT".
        drop_cmp_parts: convert a CMP checkpoint without what only CMP has. The embeddings' projections are
            new then.

    Raises:
        ValueError: naming every key that is missing, unexpected, of another shape or not finite.
    """
    num_text_layers = model.config.text_config.num_hidden_layers
    kind = kind or kind_of(weights)
    patterns = LEFT_OUT | (CMP_PARTS if drop_cmp_parts else {})
    lacked = {"CMP": LACKED_BY_CMP if drop_cmp_parts else None, "Swin and BERT": LACKED_BY_SWIN_AND_BERT}
    may_be_new = lacked.get(kind)
    wrapped = any(name.startswith(PRETRAINED_TEXT) for name in weights)
    converted, used, interpolated, new = {}, set(), [], []
    missing, misshaped, not_finite = set(), set(), set()
    for name, wanted in model.state_dict().items():
        source = upstream_name(name, num_text_layers)
        if wrapped:
            source = re.sub(r"^text_encoder\.", PRETRAINED_TEXT, source)
        if source not in weights:
            if may_be_new and re.search(may_be_new, source):
                new.append(source)
            else:
                missing.add(source)
            continue
        used.add(source)
        tensor = weights[source]
        shape = tuple(wanted.shape)
        part = QUERY_KEY_VALUE.search(name)
        if part:
            shape = (3 * shape[0], *shape[1:])
        elif name.endswith(".relative_position_bias_table") and is_other_window(tensor, wanted):
            tensor = interpolate_table(tensor, round(len(wanted) ** 0.5))
            interpolated.append(source)
        elif name == "temperature.value" and tensor.dim() == 0:  # upstream's is a scalar
            tensor = tensor.reshape(shape)
        if tuple(tensor.shape) != shape:
            misshaped.add(f"{source}: {tuple(tensor.shape)} in the checkpoint, {shape} in the model")
            continue
        if not tensor.isfinite().all():
            not_finite.add(source)
        converted[name] = tensor.chunk(3)["qkv".index(part[1])] if part else tensor

    left_out = {
        reason: [name for name in weights if re.search(pattern, name)] for reason, pattern in patterns.items()
    }
    unexpected = weights.keys() - used - {name for names in left_out.values() for name in names}
    problems = [
        f"{title} ({len(names)}):\n" + "\n".join(f"  {name}" for name in sorted(names))
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
            ("not finite", not_finite),
        )
        if names
    ]
    if problems:
        advice = "another architecture? give --vision_config and --text_config"
        if kind == "CMP" and not drop_cmp_parts:
            advice = (
                "a CMP checkpoint has parts that this model has not; --drop_cmp_parts converts the rest, and "
                "the projections of the embeddings start anew, so fine-tune it before you search with it"
            )
        raise ValueError(f"does not fit the configuration ({advice}). Keys " + "\nKeys ".join(problems))
    return Conversion(
        kind=kind,
        state_dict=converted,
        left_out={reason: names for reason, names in left_out.items() if names},
        interpolated=interpolated,
        new=new,
    )


def build_processor(tokenizer: str, config: TPASConfig) -> TPASProcessor:
    """X-VLM's processor around a tokenizer (directory or Hub id) that fits the word embeddings."""
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    if len(loaded) > config.text_config.vocab_size:
        raise ValueError(
            f"the tokenizer {tokenizer} has {len(loaded)} words, the model {config.text_config.vocab_size}: "
            f"give the one it was trained with as --tokenizer, or none"
        )
    return TPASProcessor.build(
        loaded, image_size=config.vision_config.image_size, max_text_length=config.max_text_length
    )


@torch.inference_mode()
def check_saved(directory: str | Path, model: TPASModel) -> None:
    """Loads the saved model again and runs both; RuntimeError if their answers differ."""
    vision, text = model.config.vision_config, model.config.text_config
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(
            1, vision.num_channels, vision.image_size, vision.image_size, generator=generator
        ),
        "input_ids": torch.randint(text.vocab_size, (1, 8), generator=generator),
    }
    expected = model.float()(**inputs)
    answer = TPASModel.from_pretrained(directory, dtype=torch.float32)(**inputs)
    for name in ("image_embeds", "text_embeds", "match_logits"):
        difference = (answer[name] - expected[name]).abs().max().item()
        if not difference <= 1e-5:  # so written that a NaN fails, too
            raise RuntimeError(f"the saved model's {name} differ by {difference} from the converted one's")


def convert_checkpoint(
    checkpoint: str | Path | None,
    output_dir: str | Path,
    vision_config: str | Path | None = None,
    text_config: str | Path | None = None,
    image_size: int | None = None,
    tokenizer: str | None = "bert-base-uncased",
    dtype: torch.dtype = torch.float32,
    swin: str | Path | None = None,
    bert: str | Path | None = None,
    drop_cmp_parts: bool = False,
) -> Conversion:
    """Writes `output_dir`: the model, its code, and with a `tokenizer` (directory or Hub id) the processor.

    The directory appears whole or not at all, and only after the saved model was loaded and run. In place of
    a `checkpoint`, `swin` and `bert` are joined (see [`join_swin_and_bert`]).

    Raises:
        FileNotFoundError, ValueError: see [`read_checkpoint`], [`build_config`], [`convert_state_dict`].
        FileExistsError: `output_dir` is there already and not empty.
    """
    output = Path(output_dir).resolve()  # a link to an empty directory cannot be replaced by a directory
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty directory: remove it, or name another")
    if checkpoint is not None and swin is None and bert is None:
        source, kind, read = checkpoint, None, partial(read_checkpoint, checkpoint)
    elif checkpoint is None and swin is not None and bert is not None:
        source, kind = f"{swin} and {bert}", "Swin and BERT"
        read = partial(join_swin_and_bert, swin, bert)
    else:
        raise ValueError("give either a checkpoint, or --swin and --bert together")
    logger.info("reading %s", source)
    weights = read()
    config = build_config(weights, vision_config, text_config, image_size)
    processor = None if tokenizer is None else build_processor(tokenizer, config)
    logger.info("converting %d tensors", len(weights))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(NEW_WEIGHTS_SEED)
        model = TPASModel(config).eval()
    try:
        conversion = convert_state_dict(weights, model, kind, drop_cmp_parts)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    model.load_state_dict(conversion.state_dict, strict=not conversion.new)
    torch.nn.Module.to(model, dtype)  # transformers hides the signature of its own from type checkers

    with replacing(output) as unfinished:
        logger.info("writing %s", output)
        model.save_pretrained(unfinished)
        if processor is not None:
            processor.save_pretrained(unfinished)
        logger.info("loading it again to check it")
        check_saved(unfinished, model)
    return conversion
