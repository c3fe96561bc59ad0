"""LLM2CLIP (https://arxiv.org/abs/2411.04997): EVA-02's image tower beside a language model's captions.

    llm2clip:microsoft/LLM2CLIP-Llama3.2-1B-EVA02-L-14-336

Captions go through a Llama that was tuned on pairs of captions and sees them whole, not from left to right;
the mean over a caption's tokens, at unit norm, goes through an adapter. The weights are theirs, the code is
not: the tower is timm's, the Llama transformers' own under a mask that hides padding alone, and a checkpoint
is read as data, all of it or not at all. A folder that fine-tuning wrote holds tower, adapter and
temperature; the Llama is never trained and stays where it was.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BatchFeature, CLIPImageProcessorPil, LlamaModel

from ..data.json_records import read_json
from ..data.whole_files import open_by_umask
from ..modeling_tpas import check_loaded
from ..processing_tpas import check_knows_words
from .baselines_extra import import_from_baselines
from .checkpoint_conversion import read_checkpoint
from .dual_encoder import DualEncoder
from .pair_processor import PairProcessor
from .transformers_encoders import load_complete

CONFIG_FILE = "llm2clip.json"
WEIGHTS_FILE = "llm2clip.safetensors"
SOURCES = {
    "tower": "eva02_large_patch14_clip_336",
    "language_model": "microsoft/LLM2CLIP-Llama-3.2-1B-Instruct-CC-Finetuned",
    # The repository's state in which its files were listed when this was written.
    "language_model_revision": "52e9e56e2fcfc0a2793fcd477b88f5f21f346c0e",
}
# How its captions were presented in its training; the mean is over what comes after the first part.
BEFORE_CAPTION = "<|start_header_id|>user<|end_header_id|>\n\n"
AFTER_CAPTION = "<|eot_id|>"
LONGEST_CAPTION = 512
ADAPTER_BLOCKS = 4


class AdapterBlock(nn.Module):
    """A feed-forward layer with its residual."""

    def __init__(self, width: int, inner_width: int):
        super().__init__()
        self.fn = nn.Sequential(
            nn.Linear(width, inner_width), nn.GELU(), nn.Dropout(0.0), nn.Linear(inner_width, width)
        )
        self.ln = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.fn(self.ln(hidden))


def build_adapter(width: int, inner_width: int, embedding_size: int) -> nn.Sequential:
    """From the Llama's width to the embeddings', its parameters named as in the checkpoints."""
    blocks = (AdapterBlock(width, inner_width) for _ in range(ADAPTER_BLOCKS))
    return nn.Sequential(*blocks, nn.LayerNorm(width), nn.Linear(width, embedding_size))


class LLM2CLIPNetwork(nn.Module):
    """Image tower, adapter and temperature; the language model."""

    visual: Any  # timm's

    def __init__(self, visual: nn.Module, adapter: nn.Module, language_model: nn.Module):
        super().__init__()
        self.visual = visual
        self.adapter = adapter
        self.language_model = language_model
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))


class LLM2CLIPEncoder(DualEncoder):
    """LLM2CLIP as a `RetrievalModel`.

    Args:
        sources: the tower's name in timm, and the language model's folder or Hub name and revision.
        tokens_before: of `BEFORE_CAPTION`, and of what the tokenizer puts before all.
    """

    lora_targets = r"network\.visual\..*\.(q_proj|v_proj|qkv)"
    trained_with_lora = ("temperature", "network.adapter")
    without_gradient = r"^logit_scale$|^language_model\."

    def __init__(
        self, network: LLM2CLIPNetwork, name_or_path: str, sources: dict[str, Any], tokens_before: int
    ):
        super().__init__(network, name_or_path)
        self.sources = sources
        self.tokens_before = tokens_before

    @property
    def config(self) -> dict[str, Any]:
        return self.sources

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        return self.network.visual(pixel_values)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = attention_mask.bool()[:, None, None, :]  # (B, 1, 1, L): by every token of the caption
        seen = seen.expand(-1, 1, input_ids.shape[1], -1)
        with torch.no_grad():
            hidden = self.network.language_model(input_ids, attention_mask=seen, use_cache=False)
        pooled = attention_mask.clone()
        pooled[:, : self.tokens_before] = 0
        pooled = pooled[:, :, None].to(hidden.last_hidden_state.dtype)
        mean = (hidden.last_hidden_state * pooled).sum(dim=1) / pooled.sum(dim=1)
        # The blocks add to what they get, so its size matters: theirs is of unit norm (`TextProj` of their
        # eva_clip/model.py, `LLM2CLIP_Adapter` on the Hub).
        return self.network.adapter(F.normalize(mean, dim=-1))

    def save_pretrained(self, folder: str | Path) -> None:
        """Tower, adapter and temperature, and where the language model is."""
        self.keep_temperature()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: value.contiguous()
            for name, value in self.network.state_dict().items()
            if not name.startswith("language_model.")
        }
        save_file(weights, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(self.sources, indent=2), encoding="utf-8")
        open_by_umask(folder)

    def activation_checkpointing_enable(self, settings: dict[str, Any]) -> None:
        """Recomputes the tower's activations going backwards."""
        self.network.visual.set_grad_checkpointing(True)


class LLM2CLIPProcessor(PairProcessor):
    """Captions as the language model was trained on them."""

    def __call__(
        self, images: list[Image.Image] | None = None, text: list[str] | None = None
    ) -> BatchFeature:
        """See `RetrievalProcessor`."""
        features = super().__call__(images, text)
        if text is not None:
            ends = self.tokenizer(AFTER_CAPTION, add_special_tokens=False)["input_ids"]
            shown = [
                self.tokenizer(BEFORE_CAPTION + caption.strip())["input_ids"][
                    : self.max_text_length - len(ends)
                ]
                + ends
                for caption in text
            ]
            features |= self.tokenizer.pad({"input_ids": shown}, return_tensors="pt")
        return features


def load_llm2clip(
    place: str,
    dtype: torch.dtype | None,
    spec: str,
    revision: str | None = None,
    sources: dict[str, Any] = SOURCES,
) -> tuple[LLM2CLIPEncoder, LLM2CLIPProcessor]:
    """By a Hub repository or folder of theirs, or a folder that fine-tuning wrote.

    None of the code that comes with it is run.

    Args:
        sources: see `LLM2CLIPEncoder`; what a folder of ours says goes before it.

    Raises:
        OSError: it is not there.
        ValueError: timm cannot be imported, or a weight is missing, unexpected or of another shape.
    """
    timm = import_from_baselines("timm")
    folder = Path(place)
    if not folder.is_dir():
        folder = Path(snapshot_download(place, revision=revision))
    if (folder / CONFIG_FILE).is_file():
        sources = sources | read_json(folder / CONFIG_FILE)
        weights = load_file(folder / WEIGHTS_FILE)
    else:
        weights = their_weights(folder)
    name, pinned = sources["language_model"], sources["language_model_revision"]
    pinned = None if Path(name).is_dir() else pinned
    source = {"revision": pinned, "trust_remote_code": False}
    language_model = load_complete(LlamaModel, name, dtype or torch.float32, beside=r"^lm_head\.", **source)
    tokenizer = AutoTokenizer.from_pretrained(name, **source)
    check_knows_words(tokenizer, f"the tokenizer of {name}")
    network = build_network(timm, sources["tower"], language_model, weights, place)
    if dtype is not None:
        network.to(dtype)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    size = network.visual.patch_embed.img_size[0]
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    processor = LLM2CLIPProcessor(
        image_processor, tokenizer, image_size=size, max_text_length=LONGEST_CAPTION
    )
    tokens_before = len(tokenizer(BEFORE_CAPTION)["input_ids"])
    return LLM2CLIPEncoder(network, spec, sources, tokens_before), processor


def their_weights(folder: Path) -> dict[str, Tensor]:
    """The one checkpoint of a repository of theirs, without its pickled code.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = [path for ending in ("*.pt", "*.pth", "*.safetensors") for path in sorted(folder.glob(ending))]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{folder}: one checkpoint of tower and adapter is needed, found {names}")
    if found[0].suffix == ".safetensors":
        return load_file(found[0])
    return read_checkpoint(found[0]).weights


def build_network(
    timm: Any, tower: str, language_model: LlamaModel, weights: dict[str, Tensor], place: str
) -> LLM2CLIPNetwork:
    """Tower and adapter with these weights, under their names or ours.

    Raises:
        ValueError: a weight is missing, unexpected or of another shape.
    """
    ours = "adapter.0.ln.weight" in weights
    prefix = "adapter." if ours else "text.text_adaptor."
    adapter_weights = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    if not adapter_weights:
        raise ValueError(f"{place}: the checkpoint has no adapter, no weight {prefix}...")
    first, last = f"{prefix}0.fn.0.weight", f"{prefix}{ADAPTER_BLOCKS + 1}.weight"
    if absent := [name for name in (first, last, "logit_scale") if name not in weights]:
        raise ValueError(f"{place}: {len(absent)} weights do not fit, such as {absent[0]} (missing)")
    inner_width, width = weights[first].shape
    embedding_size = weights[last].shape[0]
    if width != language_model.config.hidden_size:
        raise ValueError(
            f"{place}: its adapter is for a language model of width {width}, and that of "
            f"{language_model.name_or_path} is {language_model.config.hidden_size}"
        )
    visual = timm.create_model(tower, num_classes=embedding_size)
    network = LLM2CLIPNetwork(visual, build_adapter(width, inner_width, embedding_size), language_model)
    known = ("visual.", prefix, "logit_scale")
    strange = [name for name in weights if not name.startswith(known)]
    tower_weights = {name: value for name, value in weights.items() if name.startswith("visual.")}
    if ours:
        tower_weights = {name.removeprefix("visual."): value for name, value in tower_weights.items()}
    else:
        tower_weights = timm.models.eva.checkpoint_filter_fn(tower_weights, visual)
    for part, of_part in ((visual, tower_weights), (network.adapter, adapter_weights)):
        try:
            result = part.load_state_dict(of_part, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{place}: {str(error).strip().splitlines()[-1].strip()}") from error
        strange += [*result.unexpected_keys, *(f"{name} (missing)" for name in result.missing_keys)]
    if strange:
        raise ValueError(f"{place}: {len(strange)} weights do not fit, such as {strange[0]}")
    with torch.no_grad():
        network.logit_scale.copy_(weights["logit_scale"].reshape(()))
    check_loaded(place, network)
    return network
