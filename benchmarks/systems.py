"""The retrieval models side by side: parameters, what each needs, images and pairs a second at full size.

    OMP_NUM_THREADS=1 python benchmarks/systems.py --output benchmarks/systems.md

Networks are built from their configurations with random weights, so nothing is downloaded; speed does not
depend on the weights, and recall is not measured here. A system's images, captions and pairs are timed in
turn, in the process's own time on one thread and in fp32, and the least time counts: what else the machine
does can only add to it. open_clip's and LLM2CLIP's are listed where torchvision can be imported. `--quick`
builds small networks and only shows that the script runs.
"""

import argparse
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import markdown_table, time_in_turn
from torch import nn
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaModel,
    SiglipConfig,
    SiglipModel,
)

from tpas.configuration_tpas import TPASConfig
from tpas.data.whole_files import write_text
from tpas.modeling_tpas import TPASModel
from tpas.models.baselines_extra import import_from_baselines
from tpas.models.blip import BlipRetriever
from tpas.models.llm2clip import SOURCES, LLM2CLIPEncoder, LLM2CLIPNetwork, build_adapter
from tpas.models.open_clip_encoders import OpenClipEncoder
from tpas.models.transformers_encoders import TransformersDualEncoder

TOKENS = 70  # of a caption, the paper's cut
PAPER = "arXiv:2502.03230, Table 2"
NEEDS_EXTRA = "`.[baselines]`"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
# Llama-3.2-1B
LLAMA = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}
LLM2CLIP_NEEDS = f"{NEEDS_EXTRA}, 7 GB of memory"


@dataclass(frozen=True)
class System:
    """A row.

    Attributes:
        name: what `--model` takes.
        build: makes the model, small if asked to.
        tokens: of a caption that it takes.
        paper: what the paper prints, zero-shot and fine-tuned, Recall@1 in percent.
    """

    name: str
    build: Callable[[bool], nn.Module]
    image_size: int
    tokens: int
    needs: str = ""
    paper: tuple[float, float] | None = None


def build_tpas(quick: bool) -> TPASModel:
    if not quick:
        return TPASModel(TPASConfig())
    vision = {"image_size": 384, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 12}
    return TPASModel(TPASConfig(vision_config=vision, text_config=SMALL, num_cross_modal_layers=1))


def build_clip(quick: bool) -> TransformersDualEncoder:
    small = SMALL if quick else {}
    vision, text = {"patch_size": 16, "image_size": 224} | small, small
    return TransformersDualEncoder(CLIPModel(CLIPConfig(vision_config=vision, text_config=text)), "clip")


def build_siglip(quick: bool) -> TransformersDualEncoder:
    small = SMALL if quick else {}
    vision, text = {"patch_size": 16, "image_size": 224} | small, {"vocab_size": 32000} | small
    config = SiglipConfig(vision_config=vision, text_config=text)
    return TransformersDualEncoder(SiglipModel(config), "siglip")


def build_blip(quick: bool) -> BlipRetriever:
    vision, text = {"patch_size": 16, "image_size": 384}, {"encoder_hidden_size": 768}
    if quick:
        vision, text = vision | SMALL, SMALL | {"encoder_hidden_size": SMALL["hidden_size"]}
    config = BlipConfig(vision_config=vision, text_config=text)
    return BlipRetriever(BlipForImageTextRetrieval(config), "blip")


def build_eva_clip(quick: bool) -> OpenClipEncoder:
    network = import_from_baselines("open_clip").create_model("EVA02-B-16", load_weights=False)
    return OpenClipEncoder(network, "open_clip:EVA02-B-16", {})


def build_llm2clip(quick: bool) -> LLM2CLIPEncoder:
    tower = "eva02_tiny_patch14_336" if quick else SOURCES["tower"]
    llama = LLAMA | {"num_hidden_layers": 1, "vocab_size": 99} if quick else LLAMA
    visual = import_from_baselines("timm").create_model(tower, num_classes=768)
    adapter = build_adapter(LLAMA["hidden_size"], 2 * LLAMA["hidden_size"], 768)
    network = LLM2CLIPNetwork(visual, adapter, LlamaModel(LlamaConfig(**llama)))
    return LLM2CLIPEncoder(network, "llm2clip", {}, tokens_before=5)


SYSTEMS = (
    System("a TPAS model (X-VLM)", build_tpas, 384, TOKENS, "", (77.86, 79.98)),
    System("transformers: CLIP, ViT-B/16", build_clip, 224, TOKENS),
    System("transformers: SigLIP, base, patch 16", build_siglip, 224, 64),
    System("blip: BLIP base", build_blip, 384, TOKENS),
    System("open_clip: EVA-CLIP, EVA02-B-16", build_eva_clip, 224, 77, NEEDS_EXTRA, (60.01, 77.81)),
    System(
        "llm2clip: EVA02-L-14-336 and Llama 1B", build_llm2clip, 336, TOKENS, LLM2CLIP_NEEDS, (73.61, 79.93)
    ),
)


@torch.inference_mode()
def programs(system: System, model: nn.Module, images: int, pairs: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by its name."""
    pixels = torch.randn(images, 3, system.image_size, system.image_size)
    ids = torch.randint(5, 90, (pairs, system.tokens))
    mask = torch.ones_like(ids)

    guarded = torch.inference_mode()  # each call as well
    timed = {
        "images": guarded(lambda: model.get_image_features(pixels)),
        "captions": guarded(lambda: model.get_text_features(ids, mask)),
    }
    if hasattr(model, "match"):
        states = model.get_image_features(pixels[:1]).last_hidden_state.repeat(pairs, 1, 1)
        texts = model.get_text_features(ids, mask).last_hidden_state
        timed["pairs"] = guarded(lambda: model.match(states, texts, mask))
    return timed


def measure(system: System, arguments: argparse.Namespace) -> dict[str, Any]:
    """Parameters and items a second; "missing" where the system cannot be built here."""
    try:
        model = system.build(arguments.quick).eval()
    except ValueError as error:
        return {"missing": str(error)}
    counts = {"images": arguments.images, "captions": arguments.pairs, "pairs": arguments.pairs}
    timed = programs(system, model, arguments.images, arguments.pairs)
    seconds = time_in_turn(timed, arguments.repeats, cpu_time=True)
    rates = {name: counts[name] / min(of_name) for name, of_name in seconds.items()}
    parameters = sum(p.numel() for p in model.parameters())
    if hasattr(model, "temperature"):
        parameters -= sum(p.numel() for p in model.temperature.parameters())
    return {"parameters": parameters, **rates}


def shown_rate(rate: float | None) -> str:
    """Two digits that count."""
    if rate is None:
        return "—"
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def markdown(measured: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> str:
    heads = ["`--model`", "parameters", "pixels", "needs", "images/s", "captions/s", "pairs/s"]
    heads += ["paper's Recall@1 on PAB, zero-shot → fine-tuned", "ours"]
    rows = []
    for system in SYSTEMS:
        figures = measured[system.name]
        rates = [shown_rate(figures.get(name)) for name in ("images", "captions", "pairs")]
        parameters = f"{figures['parameters'] / 1e6:,.1f} M" if "parameters" in figures else "—"
        paper = "—" if system.paper is None else " → ".join(f"{recall:.2f}" for recall in system.paper)
        pixels, needs = str(system.image_size), system.needs or "—"
        rows.append([system.name, parameters, pixels, needs, *rates, paper, "—"])
    lines = ["# Retrieval models side by side", "", *markdown_table(heads, rows)]
    lines += [
        "",
        f"The paper's figures are of {PAPER}; of ours on PAB there are none, its images and the weights "
        f"were out of reach. Speed: random weights at full size, fp32, one thread ({platform.machine()}), "
        f"torch {torch.__version__}; {arguments.images} images, {arguments.pairs} captions or pairs of "
        f"{TOKENS} tokens at a time (SigLIP 64, EVA-CLIP 77), least of {arguments.repeats} repeats. A pair "
        "is one caption beside one image, both encoded already.",
    ]
    if arguments.quick:
        lines += ["", "Small networks: nothing of this is a measurement."]
    missing = {name: figures["missing"] for name, figures in measured.items() if "missing" in figures}
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in missing.items()]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=2, help="images at a time (default: 2)")
    parser.add_argument("--pairs", type=int, default=4, help="captions and pairs at a time (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--quick", action="store_true", help="small networks: shows that the script runs")
    parser.add_argument("--output", type=Path, help="write the table here")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured = {}
    for system in SYSTEMS:  # one in memory at a time
        measured[system.name] = measure(system, arguments)
    table = markdown(measured, arguments)
    print(table)
    if arguments.output:
        write_text(arguments.output, table)


if __name__ == "__main__":
    main()
