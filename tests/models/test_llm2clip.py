"""LLM2CLIP's parts: the Llama that sees a caption whole, the adapter, a checkpoint in its authors' layout."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_retrieval_models import SIZE, needs, word_tokenizer
from transformers import LlamaConfig, LlamaModel

from tpas.models.llm2clip import (
    AFTER_CAPTION,
    BEFORE_CAPTION,
    SOURCES,
    LLM2CLIPEncoder,
    LLM2CLIPNetwork,
    build_adapter,
    load_llm2clip,
)
from tpas.models.loading import load_model

needs_timm = needs("timm")
LLAMA = SIZE | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def small_llama(vocabulary: int) -> LlamaModel:
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=64, **LLAMA)).eval()


def test_captions_are_seen_whole_and_their_padding_and_prompt_are_not_pooled():
    llama = small_llama(50)
    network = LLM2CLIPNetwork(torch.nn.Identity(), build_adapter(32, 64, 8), llama)
    model = LLM2CLIPEncoder(network, "x", {}, tokens_before=2).eval()
    ids = torch.tensor([[1, 5, 7, 9, 11, 2], [1, 5, 8, 2, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        embeds = model.get_text_features(ids, mask).pooler_output
        alone = model.get_text_features(ids[1:, :4], mask[1:, :4]).pooler_output
        # By hand: full attention is a float mask of zeros.
        states = llama(ids[1:, :4], attention_mask=torch.zeros(1, 1, 4, 4)).last_hidden_state
        causal = llama(ids[1:, :4]).last_hidden_state
        pooled = F.normalize(states[:, 2:].mean(dim=1), dim=-1)  # as LLM2CLIP's adapter takes it
        expected = F.normalize(network.adapter(pooled), dim=-1)
    torch.testing.assert_close(embeds[1:], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(causal[:, 0], states[:, 0], atol=1e-3)  # its first token sees what follows


def test_the_language_model_is_not_trained():
    network = LLM2CLIPNetwork(torch.nn.Linear(2, 8), build_adapter(32, 64, 8), small_llama(50))
    model = LLM2CLIPEncoder(network, "x", {}, tokens_before=2)
    text = model.get_text_features(torch.tensor([[1, 5, 7, 2]]), torch.ones(1, 4).long())
    text.pooler_output.sum().backward()
    assert not any(p.requires_grad for p in network.language_model.parameters())
    assert all(p.grad is not None for p in network.adapter.parameters())


def in_the_authors_layout(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names of an EVA-02 tower as EVA-CLIP has them (its `eva_vit_model.py`)."""
    names = {".mlp.fc1_g.": ".mlp.w1.", ".mlp.fc1_x.": ".mlp.w2.", ".mlp.fc2.": ".mlp.w3."}
    names |= {".mlp.norm.": ".mlp.ffn_ln.", ".attn.norm.": ".attn.inner_attn_ln."}
    renamed = {}
    for name, value in weights.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        renamed[f"visual.{re.sub('q_proj.bias', 'q_bias', re.sub('v_proj.bias', 'v_bias', name))}"] = value
    return renamed


@pytest.fixture
def repository(tmp_path) -> Path:
    """A checkpoint in the authors' layout beside a small Llama with the special words of the real one."""
    import timm

    tokenizer = word_tokenizer(64)
    special = ["<|start_header_id|>", "<|end_header_id|>", AFTER_CAPTION]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    small_llama(len(tokenizer)).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.manual_seed(0)
    visual = timm.create_model("eva02_tiny_patch14_224", num_classes=16)
    adapter = build_adapter(32, 64, 16)
    weights = in_the_authors_layout(visual.state_dict())
    weights |= {f"text.text_adaptor.{name}": value for name, value in adapter.state_dict().items()}
    torch.save(weights | {"logit_scale": torch.tensor(3.0)}, folder / "LLM2CLIP.pt")
    return folder


def small_sources(folder: Path) -> dict[str, str]:
    """Of the repository above."""
    return SOURCES | {"tower": "eva02_tiny_patch14_224", "language_model": str(folder / "llama")}


@needs_timm
def test_a_checkpoint_of_the_authors_is_read_whole_or_refused(repository, tmp_path):
    import timm

    def load():
        return load_llm2clip(str(repository), torch.float32, "theirs", sources=small_sources(tmp_path))

    model, processor = load()
    model.eval()
    torch.manual_seed(0)
    visual = timm.create_model("eva02_tiny_patch14_224", num_classes=16).eval()
    inputs = processor(images=[Image.new("RGB", (50, 60), "red")], text=["a man in a red coat", "a woman"])
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][1])
    assert words[:2] == ["<s>", "<|start_header_id|>"]
    assert words[-1] == "<pad>"
    assert AFTER_CAPTION in words
    assert model.tokens_before == len(processor.tokenizer(BEFORE_CAPTION)["input_ids"])
    with torch.no_grad():
        embeds = model.get_image_features(inputs["pixel_values"]).pooler_output
        expected = F.normalize(visual(inputs["pixel_values"]), dim=-1)
        texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(texts[0], texts[1], atol=1e-4)
    assert model.temperature().item() == pytest.approx(torch.tensor(-3.0).exp().item(), rel=1e-5)

    model.save_pretrained(tmp_path / "kept")
    processor.save_pretrained(tmp_path / "kept")
    again, _ = load_model(str(tmp_path / "kept"))
    with torch.no_grad():
        kept = again.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
    assert torch.equal(kept, texts)

    weights = torch.load(repository / "LLM2CLIP.pt", weights_only=True)
    for name, value in (("visual.blocks.99.norm1.bias", torch.zeros(192)), ("transformer.x", torch.zeros(2))):
        torch.save(weights | {name: value}, repository / "LLM2CLIP.pt")
        with pytest.raises(ValueError, match=f"1 weights do not fit, such as {name.removeprefix('visual.')}"):
            load()
    for name in ("logit_scale", "text.text_adaptor.0.fn.0.weight", "text.text_adaptor.4.bias"):
        torch.save({key: value for key, value in weights.items() if key != name}, repository / "LLM2CLIP.pt")
        with pytest.raises(ValueError, match=rf"{name} \(missing\)"):
            load()


@needs_timm
def test_a_language_model_that_lacks_weights_is_refused(repository, tmp_path):
    """transformers would draw them at random."""
    weights = load_file(tmp_path / "llama" / "model.safetensors")
    del weights["norm.weight"]
    save_file(weights, tmp_path / "llama" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of the model, such as norm.weight"):
        load_llm2clip(str(repository), torch.float32, "theirs", sources=small_sources(tmp_path))


@needs_timm
def test_the_parts_have_their_size():
    """Llama-3.2-1B's configuration, its adapter, and the tower of EVA02-L-14-336."""
    import timm

    size = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    config = LlamaConfig(**size, num_attention_heads=32, num_key_value_heads=8, head_dim=64)
    with torch.device("meta"):
        llama, adapter = LlamaModel(config), build_adapter(2048, 4096, 768)
        visual = timm.create_model("eva02_large_patch14_clip_336", num_classes=768)
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (visual, adapter, llama)]
    assert millions == pytest.approx([304.43, 68.74, 1235.81], abs=0.02)
