"""Turns an X-VLM checkpoint into a directory for `TPASModel.from_pretrained`, with its processor.

    python convert_checkpoint.py checkpoint_9.pth xvlm-coco --vision_config config_swinB_384.json

Read are X-VLM's fine-tuned retrieval checkpoints and its pre-training checkpoints; which of them a file is
shows in its keys. Without configurations X-VLM base at 384 pixels is assumed. Conversion is total or
refused: a missing, unexpected or mis-shaped key is an error, and what is left out on purpose is reported.
"""

import argparse
import json
import os
import re
import tempfile
import zipfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from tpas.configuration_tpas import XVLM_BASE_TEXT, XVLM_BASE_VISION, TPASConfig
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor

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
}


@dataclass
class Conversion:
    """What became of a checkpoint.

    Attributes:
        kind: "pre-training" or "fine-tuned retrieval".
        state_dict: weights under `TPASModel`'s names; parts of the checkpoint's own memory where possible.
        left_out: for each reason the upstream keys that were left out on purpose.
        interpolated: the upstream keys of relative position tables that were brought to another window.
    """

    kind: str
    state_dict: dict[str, Tensor]
    left_out: dict[str, list[str]]
    interpolated: list[str]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in an upstream file, `{"model": state_dict, ...}` or the state dict itself.

    Nothing in the file is executed; large files are mapped, not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated, no checkpoint, or needs more than tensors and plain Python values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        # Only the zip format (torch >= 1.6) can be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # the unpickler raises nearly anything on a broken file
        refused = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", str(error))
        if refused:
            raise ValueError(
                f"{path}: refused, because it holds a {refused[1]}, and unpickling that could run any code. "
                f"Where you trust the file, save its state dict alone: "
                f"torch.save({{'model': checkpoint['model']}}, ...)."
            ) from error
        raise ValueError(
            f"{path}: truncated, or no torch checkpoint ({type(error).__name__}); get the file again."
        ) from error
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights or not all(map(torch.is_tensor, weights.values())):
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


def vision_settings(path: str | Path | None, image_size: int | None) -> dict[str, Any]:
    """`SwinConfig` fields of upstream's JSON (`None`: X-VLM base), at `image_size` pixels if that is given.

    Upstream's Swin never pads, so its window is the whole feature map of the last stage (224: 7, 384: 12,
    480: 15), and so it is here at another image size.
    """
    settings = deepcopy(XVLM_BASE_VISION)
    if path is not None:
        upstream = read_json(path, ("image_res", "window_size", "embed_dim", "depths", "num_heads"))
        settings["image_size"] = upstream["image_res"]
        settings |= {name: upstream[name] for name in ("window_size", "embed_dim", "depths", "num_heads")}
    if image_size is not None and image_size != settings["image_size"]:
        reduction = settings["patch_size"] * 2 ** (len(settings["depths"]) - 1)
        if image_size < reduction or image_size % reduction:
            raise ValueError(f"image_size must be a multiple of {reduction} pixels, got {image_size}")
        settings |= {"image_size": image_size, "window_size": image_size // reduction}
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
    return TPASConfig(
        vision_config=vision_settings(vision_config, image_size),
        text_config=text,
        num_cross_modal_layers=num_cross_modal_layers,
        projection_dim=TPASConfig.projection_dim if projection is None else len(projection),
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


def spline_basis(positions: Tensor, knots: Tensor) -> Tensor:
    """The cubic splines with the given knots, as powers and truncated powers: (P,), (K,) to (P, 4 + K)."""
    powers = positions[:, None] ** torch.arange(4)
    truncated = (positions[:, None] - knots[None, :]).clamp(min=0) ** 3
    return torch.cat([powers, truncated], dim=1)


def interpolation_matrix(source: int, target: int) -> Tensor:
    """The linear map (target, source) by which upstream resizes one axis of a relative position table.

    As upstream's `interpolate_relative_pos_embed`: the source's positions grow geometrically from the
    centre, with the ratio (at most 1.5, found by the same bisection) at which they end where the
    target's unit steps end; through them goes a not-a-knot cubic spline, held constant beyond its ends.
    """
    if source < 4:
        raise ValueError(f"a relative position table of {source}x{source} is too small for a cubic spline")
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (source // 2)) / (1 - ratio) > target // 2:
            high = ratio
        else:
            low = ratio
    half = (ratio ** torch.arange(source // 2, dtype=torch.float64)).cumsum(0)
    positions = torch.cat([-half.flip(0), half.new_zeros(1), half])  # (source,)
    steps = torch.arange(target, dtype=torch.float64) - target // 2  # (target,)
    end = half[-1]
    knots = positions[2:-2] / end  # not-a-knot: the outermost inner points are none
    values_of_basis = spline_basis(positions / end, knots)  # (source, source)
    return torch.linalg.solve(values_of_basis, spline_basis((steps / end).clamp(-1, 1), knots), left=False)


def interpolate_table(table: Tensor, target: int) -> Tensor:
    """A relative position table (source * source, heads) to (target * target, heads), exactly as upstream."""
    source = round(len(table) ** 0.5)
    matrix = interpolation_matrix(source, target)
    grid = table.double().view(source, source, -1)
    resized = torch.einsum("ai,ijh,bj->abh", matrix, grid, matrix)
    return resized.reshape(target * target, -1).to(table.dtype)


def is_other_window(table: Tensor, wanted: Tensor) -> bool:
    """Whether both are relative position tables of the same heads, for windows of different size."""
    if table.dim() != 2 or table.shape[1:] != wanted.shape[1:]:
        return False
    side = round(len(table) ** 0.5)
    return side % 2 == 1 and side**2 == len(table) != len(wanted)


def convert_state_dict(weights: dict[str, Tensor], model: TPASModel) -> Conversion:
    """Renames upstream's weights to those of the model, splitting and resizing where the two differ.

    Raises:
        ValueError: naming every key that is missing, unexpected, of another shape or not finite.
    """
    num_text_layers = model.config.text_config.num_hidden_layers
    pretraining = any(name.startswith(PRETRAINED_TEXT) for name in weights)
    converted, used, interpolated = {}, set(), []
    missing, misshaped, not_finite = set(), set(), set()
    for name, wanted in model.state_dict().items():
        source = upstream_name(name, num_text_layers)
        if pretraining:
            source = re.sub(r"^text_encoder\.", PRETRAINED_TEXT, source)
        if source not in weights:
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
        if tuple(tensor.shape) != shape:
            misshaped.add(f"{source}: {tuple(tensor.shape)} in the checkpoint, {shape} in the model")
            continue
        if not tensor.isfinite().all():
            not_finite.add(source)
        converted[name] = tensor.chunk(3)["qkv".index(part[1])] if part else tensor

    left_out = {
        reason: [name for name in weights if re.search(pattern, name)] for reason, pattern in LEFT_OUT.items()
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
        raise ValueError(
            "does not fit the configuration (another architecture? give --vision_config and "
            "--text_config). Keys " + "\nKeys ".join(problems)
        )
    return Conversion(
        kind="pre-training" if pretraining else "fine-tuned retrieval",
        state_dict=converted,
        left_out={reason: names for reason, names in left_out.items() if names},
        interpolated=interpolated,
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
    expected = model.eval()(**inputs)
    answer = TPASModel.from_pretrained(directory).eval()(**inputs)
    for name in ("image_embeds", "text_embeds", "match_logits"):
        difference = (answer[name] - expected[name]).abs().max().item()
        if not difference <= 1e-5:  # so written that a NaN fails, too
            raise RuntimeError(f"the saved model's {name} differ by {difference} from the converted one's")


def convert_checkpoint(
    checkpoint: str | Path,
    output_dir: str | Path,
    vision_config: str | Path | None = None,
    text_config: str | Path | None = None,
    image_size: int | None = None,
    tokenizer: str | None = "bert-base-uncased",
) -> Conversion:
    """Writes `output_dir`: the model, its code, and with a `tokenizer` (directory or Hub id) the processor.

    The directory appears whole or not at all, and only after the saved model was loaded and run.

    Raises:
        FileNotFoundError, ValueError: see [`read_checkpoint`], [`build_config`], [`convert_state_dict`].
        FileExistsError: `output_dir` is there already and not empty.
    """
    output = Path(output_dir)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty directory: remove it, or name another")
    weights = read_checkpoint(checkpoint)
    config = build_config(weights, vision_config, text_config, image_size)
    processor = None if tokenizer is None else build_processor(tokenizer, config)
    model = TPASModel(config)
    try:
        conversion = convert_state_dict(weights, model)
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    model.load_state_dict(conversion.state_dict)

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        unfinished = Path(temporary) / "model"
        model.save_pretrained(unfinished)
        if processor is not None:
            processor.save_pretrained(unfinished)
        check_saved(unfinished, model)
        os.replace(unfinished, output)
    return conversion


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="upstream's .th or .pth file")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="directory to write, not there yet or empty")
    parser.add_argument("--vision_config", metavar="FILE", help="upstream's configuration of Swin, JSON")
    parser.add_argument("--text_config", metavar="FILE", help="upstream's configuration of BERT, JSON")
    parser.add_argument("--image_size", type=int, metavar="N", help="pixels a side, if not as configured")
    parser.add_argument(
        "--tokenizer",
        default="bert-base-uncased",
        metavar="DIR_OR_ID",
        help="directory or Hub id of the tokenizer, or 'none' to write no processor (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    tokenizer = None if arguments.tokenizer == "none" else arguments.tokenizer
    try:
        conversion = convert_checkpoint(
            arguments.checkpoint,
            arguments.output_dir,
            vision_config=arguments.vision_config,
            text_config=arguments.text_config,
            image_size=arguments.image_size,
            tokenizer=tokenizer,
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error
    parameters = sum(tensor.numel() for tensor in conversion.state_dict.values())
    print(f"{arguments.output_dir}: {conversion.kind} checkpoint, {parameters:,} parameters")
    if conversion.interpolated:
        print(f"interpolated to another window: {len(conversion.interpolated)} relative position tables")
    for reason, names in conversion.left_out.items():
        print(f"left out, {reason}: {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")


if __name__ == "__main__":
    main()
