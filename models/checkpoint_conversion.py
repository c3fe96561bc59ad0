"""Turns an upstream checkpoint into a directory for `TPASModel.from_pretrained`, totally or not at all.

Read are X-VLM's fine-tuned retrieval checkpoints, its pre-training checkpoints, and those of CMP, PAB's own
baseline; which of them a file is shows in its keys. A missing, unexpected or mis-shaped key is an error, and
what is left out on purpose is reported.
"""

import glob
import logging
import re
import zipfile
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from ..configuration_tpas import (
    XVLM_BASE_TEXT,
    XVLM_BASE_VISION,
    TPASConfig,
    check_sizes,
    check_whole_windows,
    height_and_width,
    number_if_square,
    unknown_settings,
)
from ..data import json_records
from ..data.whole_files import remove_abandoned, replacing
from ..modeling_tpas import TPASModel, check_loaded, interpolate_table, is_other_window
from ..processing_tpas import TPASProcessor
from .loading import check_vocabulary
from .model_files import check_numbers, check_type, explained_damage

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

# Where trainers put a state dict, and what they put before its names: DDP, Lightning, torch.compile.
STATE_DICTS = ("model", "state_dict", "model_state_dict")
PREFIXES = re.compile(r"^(?:(?:module|model|_orig_mod)\.)+|(?<=\.)_orig_mod\.")

# Upstream's settings of Swin that are read, and those that say nothing about the network.
VISION_SETTINGS = ("window_size", "embed_dim", "depths", "num_heads")
READ_OF_VISION = {*VISION_SETTINGS, "image_res", "h", "w", "vision_width", "ckpt"}
NOT_OF_TEXT = ("architectures", "model_type", "fusion_layer", "encoder_width")

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
        notes: what else a user should know, a line each: settings and parts of the file that were not used.
    """

    kind: str
    state_dict: dict[str, Tensor]
    left_out: dict[str, list[str]]
    interpolated: list[str]
    new: list[str]
    notes: list[str] = field(default_factory=list)


@dataclass
class Checkpoint:
    """What a file holds.

    Attributes:
        weights: the state dict, without what trainers put before its names.
        settings: of the training, as upstream keeps them beside it, or none.
        notes: what was taken off the names, and what lies beside the state dict unread, a line each.
    """

    weights: dict[str, Tensor]
    settings: dict[str, Any]
    notes: list[str]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """An upstream file: a state dict, alone or under one of [`STATE_DICTS`], also nested; or safetensors.

    Nothing in the file is executed; large files are mapped, and read once for their checksums.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or damaged, no checkpoint, or needs more than tensors and plain Python
            values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    content, beside = _content(path), {}
    while isinstance(content, dict) and (found := [name for name in STATE_DICTS if name in content]):
        inner = [name for name in found if isinstance(content[name], dict)]
        if len(inner) > 1:
            raise ValueError(
                f"{path}: holds several state dicts, under {' and '.join(map(repr, inner))}: save the one "
                f"that is meant alone: torch.save(checkpoint[{inner[0]!r}], ...)."
            )
        beside |= {name: value for name, value in content.items() if name not in inner}
        content = content[inner[0]] if inner else None
    tensors = isinstance(content, dict) and all(map(torch.is_tensor, content.values()))
    if not tensors or not content or not all(isinstance(name, str) for name in content):
        names = ", ".join(map(repr, STATE_DICTS))
        raise ValueError(f"{path}: holds no state dict, neither at its top nor under one of {names}.")
    settings = beside.pop("config", None)
    unread = [str(name) for name in beside]
    weights, taken_off = without_prefixes(content, path)
    notes = [f"taken off the names of the weights: {', '.join(taken_off)}"] if taken_off else []
    notes += [f"in the file beside the weights, not read: {', '.join(unread)}"] if unread else []
    return Checkpoint(weights, settings if isinstance(settings, dict) else {}, notes)


def _content(path: Path) -> Any:
    """What a file of tensors and plain Python values holds, see [`read_checkpoint`]."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Only the zip format (torch >= 1.6) can be mapped.
        is_zip = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        if is_zip:  # torch does not look at the checksums, and weights with a wrong bit are weights as well
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
        return content
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


def without_prefixes(weights: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict under the names that the network itself gives, and what was taken off them.

    Raises:
        ValueError: two names would become one.
    """
    plain, taken_off = {}, set()
    for name, tensor in weights.items():
        taken_off.update(PREFIXES.findall(name))
        short = PREFIXES.sub("", name)
        if short in plain:
            raise ValueError(f"{path}: holds {short} more than once, one of them as {name}")
        plain[short] = tensor
    return plain, sorted(taken_off)


def read_json(path: str | Path, required: tuple[str, ...]) -> dict[str, Any]:
    """An upstream configuration file; ValueError if it is no JSON object or lacks a `required` key."""
    content = json_records.read_json(Path(path))
    check_sizes(content, str(path))
    absent = [key for key in required if not isinstance(content, dict) or key not in content]
    if absent:
        raise ValueError(f"{path}: an upstream configuration of this kind has {absent}, this file has not")
    return content


def vision_settings(path: str | Path | None) -> dict[str, Any]:
    """`SwinConfig` fields of upstream's JSON (`None`: X-VLM base).

    Raises:
        ValueError: see [`read_json`]; or the file contradicts itself.
    """
    settings = deepcopy(XVLM_BASE_VISION)
    if path is None:
        return settings
    upstream = read_json(path, ("image_res", *VISION_SETTINGS))
    settings |= {name: upstream[name] for name in VISION_SETTINGS}
    settings["image_size"] = image_size_of(upstream, str(path))
    width = settings["embed_dim"] * 2 ** (len(settings["depths"]) - 1)
    if upstream.get("vision_width", width) != width:
        raise ValueError(
            f"{path}: vision_width {upstream['vision_width']}, but embed_dim {settings['embed_dim']} becomes "
            f"{width} in {len(settings['depths'])} stages"
        )
    return settings


def image_size_of(settings: dict[str, Any], place: str) -> int | tuple[int, int] | None:
    """The size that upstream's settings have: `h` and `w` of those who train on rectangles, or `image_res`.

    Raises:
        ValueError: only one of `h` and `w` is given.
    """
    if ("h" in settings) != ("w" in settings):
        raise ValueError(f"{place}: gives only one of h and w, the height and the width in pixels")
    if "h" in settings:
        return number_if_square((settings["h"], settings["w"]))
    return settings.get("image_res")


def text_settings(path: str | Path | None) -> tuple[dict[str, Any], int]:
    """`BertConfig` fields of the text layers, and the number of cross-modal layers, of upstream's JSON."""
    if path is None:
        return dict(XVLM_BASE_TEXT), TPASConfig.num_cross_modal_layers
    settings = read_json(path, ("num_hidden_layers", "fusion_layer", "hidden_size", "num_attention_heads"))
    layers, text_layers = settings["num_hidden_layers"], settings["fusion_layer"]
    if not 0 < text_layers < layers:
        raise ValueError(f"{path}: fusion_layer must be between 1 and {layers - 1}, got {text_layers}")
    for foreign in (*NOT_OF_TEXT, *unknown_settings(BertConfig, settings)):
        settings.pop(foreign, None)
    return settings | {"num_hidden_layers": text_layers}, layers - text_layers


def unused_settings(vision_config: str | Path | None, text_config: str | Path | None) -> list[str]:
    """A line for each of upstream's JSON files about what of it is not used, and may matter."""
    unused = []
    if vision_config is not None:
        unused.append((vision_config, sorted(read_json(vision_config, ()).keys() - READ_OF_VISION)))
    if text_config is not None:
        of_text = read_json(text_config, ()).keys() - set(NOT_OF_TEXT)
        unused.append((text_config, unknown_settings(BertConfig, of_text)))
    return [f"not used, of {path}: {', '.join(names)}" for path, names in unused if names]


def build_config(
    weights: dict[str, Tensor],
    vision_config: str | Path | None = None,
    text_config: str | Path | None = None,
    image_size: int | None = None,
) -> TPASConfig:
    """The architecture, from upstream's JSON files; only the embeddings' width is taken from the weights.

    Raises:
        ValueError: a file is none or contradicts itself, or upstream could not encode images of its size.
    """
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
    try:
        check_whole_windows(config.vision_config)
    except ValueError as error:
        raise ValueError(f"{vision_config}: {error}, so upstream cannot have run it") from error
    return config


def check_image_size(settings: dict[str, Any], config: TPASConfig, source: str) -> None:
    """Raises ValueError if upstream trained on rectangles and the configuration has others."""
    trained = image_size_of(settings, source) if "h" in settings or "w" in settings else None
    configured = config.vision_config.image_size
    if trained is not None and trained != configured:
        (h, w), (height, width) = height_and_width(trained), height_and_width(configured)
        raise ValueError(
            f"{source}: was trained on images of h {h}, w {w} pixels, and the configuration is of {height} x "
            f"{width}: give its own as --vision_config, or --image_size for squares"
        )


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


def join_swin_and_bert(swin: str | Path, bert: str | Path) -> Checkpoint:
    """An ImageNet checkpoint of Swin and a BERT (directory or Hub id) under the names of X-VLM.

    So X-VLM's pre-training starts: BERT's lower layers read text alone, the upper ones also the image.

    Raises:
        FileNotFoundError, ValueError: see [`read_checkpoint`].
    """
    read = read_checkpoint(swin)
    weights = {f"vision_encoder.{name}": tensor for name, tensor in read.weights.items()}
    check_sizes(BertConfig.get_config_dict(bert)[0], f"{bert}, config.json")
    loaded: Any = BertModel.from_pretrained(
        bert, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
    )
    text_model, loading = loaded
    check_loaded(bert, text_model, loading, beside=r"^(cls|(bert\.)?pooler)\.")
    weights |= {f"text_encoder.{name}": tensor for name, tensor in text_model.state_dict().items()}
    return Checkpoint(weights, {}, read.notes)


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
        check_type(str(tensor.dtype), source, "the checkpoint")
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
        if not (tensor.sum().isfinite() or tensor.isfinite().all()):  # the sum is quick, and may overflow
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
    with explained_damage(tokenizer, "tokenizer's files"):
        loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    check_vocabulary(
        loaded,
        config,
        f"the tokenizer {tokenizer}",
        "give the one it was trained with as --tokenizer, or none",
    )
    return TPASProcessor.build(
        loaded, image_size=config.vision_config.image_size, max_text_length=config.max_text_length
    )


def about(processor: TPASProcessor, config: TPASConfig) -> list[str]:
    """What a processor does that a checkpoint may have been trained otherwise with, a line each."""
    height, width = height_and_width(processor.image_size)
    lines = [
        f"images are squeezed to {height} x {width} pixels (height x width), by CLIP's mean and deviation; "
        f"texts are cut at {processor.max_text_length} tokens"
    ]
    words, embeddings = len(processor.tokenizer), config.text_config.vocab_size
    if words < embeddings:
        lines.append(f"the tokenizer has {words:,} words, the model {embeddings:,}: the others are not used")
    return lines


@torch.inference_mode()
def check_saved(directory: str | Path, model: TPASModel) -> None:
    """Loads the saved model again and runs both; RuntimeError if their answers differ."""
    vision, text = model.config.vision_config, model.config.text_config
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(
            1, vision.num_channels, *height_and_width(vision.image_size), generator=generator
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
    remove_abandoned(output.parent, glob.escape(output.name))  # of one that was killed when it was whole
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty directory: remove it, or name another")
    if checkpoint is not None and swin is None and bert is None:
        source, kind, load = checkpoint, None, partial(read_checkpoint, checkpoint)
    elif checkpoint is None and swin is not None and bert is not None:
        source, kind = f"{swin} and {bert}", "Swin and BERT"
        load = partial(join_swin_and_bert, swin, bert)
    else:
        raise ValueError("give either a checkpoint, or --swin and --bert together")
    logger.info("reading %s", source)
    read = load()
    weights = read.weights
    config = build_config(weights, vision_config, text_config, image_size)
    if image_size is None:
        check_image_size(read.settings, config, str(source))
    processor = None if tokenizer is None else build_processor(tokenizer, config)
    with torch.device("meta"):
        numbers = sum(tensor.numel() for tensor in weights.values())
        check_numbers(TPASModel(config), numbers, "the configuration", f"the weights of {source} are")
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
    conversion.notes = [*unused_settings(vision_config, text_config), *read.notes]
    conversion.notes += [] if processor is None else about(processor, config)
    return conversion
