"""open_clip's models behind our interface, where its torchvision can be imported."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_retrieval_models import needs, noise_images
from training_runs import flags

from tpas.commands.evaluate import main as evaluate_main
from tpas.models.loading import load_model
from tpas.models.open_clip_encoders import OpenClipProcessor
from tpas.train_accelerate import main as train_main

needs_open_clip = needs("open_clip")
pytestmark = pytest.mark.usefixtures("fresh_accelerator")
TOWER = {"timm_model_name": "eva02_tiny_patch14_224", "timm_model_pretrained": False}
TINY = {
    **{"embed_dim": 16, "custom_text": True},
    "vision_cfg": TOWER | {"image_size": 224, "timm_pool": "token", "timm_proj": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A tiny EVA-02 with a text encoder, in open_clip's layout for the Hub, weights at random."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip") / "tiny"
    folder.mkdir()
    image = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"}
    content = {"model_cfg": TINY, "preprocess_cfg": image | {"resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@needs_open_clip
def test_embeddings_are_open_clips(tiny):
    import open_clip

    captions = ["a man in a red coat", "a woman is running"]
    model, processor = load_model(f"open_clip:{tiny}")
    library, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny}")
    inputs = processor(images=noise_images(3), text=captions)
    with torch.no_grad():
        images = model.get_image_features(inputs["pixel_values"]).pooler_output
        texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        tokens = open_clip.get_tokenizer(f"local-dir:{tiny}")(captions)
        pixels = torch.stack([transform(image) for image in noise_images(3)])
        expected_images, expected_texts, scale = library.eval()(pixels, tokens)
    torch.testing.assert_close(images, expected_images)
    torch.testing.assert_close(texts, expected_texts)
    assert 1 / model.temperature().item() == pytest.approx(scale.item(), rel=1e-5)
    processor.max_text_length = 5
    assert processor(text=captions)["attention_mask"].sum(dim=1).tolist() == [5, 5]


class PaddedWithOne:
    """A tokenizer whose padding is not 0, as RoBERTa's and SigLIP's in open_clip."""

    tokenizer = SimpleNamespace(pad_token_id=1)

    def __call__(self, texts: list[str], context_length: int) -> torch.Tensor:
        rows = ([5] * len(text.split()) + [1] * context_length for text in texts)
        return torch.tensor([row[:context_length] for row in rows])


def test_captions_that_are_cut_are_padded_as_the_tokenizer_does():
    processor = OpenClipProcessor(None, PaddedWithOne(), image_size=32, positions=6)
    processor.max_text_length = 3
    inputs = processor(text=["a b c d e", "a"])
    assert inputs["input_ids"].tolist() == [[5, 5, 5, 1, 1, 1], [5, 1, 1, 1, 1, 1]]
    assert inputs["attention_mask"].sum(dim=1).tolist() == [3, 1]


@needs_open_clip
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_it_is_evaluated_and_fine_tuned(tiny, small_pab, tmp_path, lora_rank):
    results = tmp_path / "results.json"
    adapter = {"lora_rank": lora_rank, "merge": True} if lora_rank else {}
    train_main(flags(small_pab, tiny, tmp_path / "run", num_train_epochs=1, batch_size=8, **adapter))
    best = tmp_path / "run" / "best"
    assert (best / "adapter_model.safetensors").exists() == (lora_rank > 0)
    evaluate_main(["--model", str(best), "--data_root", str(small_pab), "--output", str(results)])
    assert json.loads(results.read_text())["final_stage"] == "embeddings"
    model, processor = load_model(str(best))
    start, _ = load_model(str(tiny))
    inputs = processor(text=["a man in a red coat"])
    embeds = [m.get_text_features(**inputs).pooler_output for m in (model, start)]
    assert not torch.allclose(*embeds, atol=1e-5)
    if lora_rank:
        merged, _ = load_model(str(tmp_path / "run" / "merged"))
        torch.testing.assert_close(merged.get_text_features(**inputs).pooler_output, embeds[0])


@needs_open_clip
@pytest.mark.parametrize(
    ("name", "millions", "pixels"), [("EVA02-B-16", 149.69, 224), ("EVA02-L-14-336", 428.08, 336)]
)
def test_the_papers_eva_clips_have_their_size(name, millions, pixels):
    import open_clip

    with torch.device("meta"):
        model = open_clip.create_model(name, load_weights=False, device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert model.visual.image_size in (pixels, (pixels, pixels))


@needs_open_clip
def test_unknown_weights_are_refused_in_one_line():
    with pytest.raises(ValueError, match="open_clip:EVA02-B-16 names no weights: add /TAG, one of merged2b"):
        load_model("open_clip:EVA02-B-16")
    with pytest.raises(ValueError, match="open_clip:EVA02-B-16/nothing: ") as refused:
        load_model("open_clip:EVA02-B-16/nothing")
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="--revision abc is of a Hub repository"):
        load_model("open_clip:EVA02-B-16/merged2b_s8b_b131k", revision="abc")


def test_without_the_extra_the_line_that_installs_it_is_shown(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[baselines\]'") as refused:
        load_model("open_clip:EVA02-B-16/merged2b_s8b_b131k")
    assert "\n" not in str(refused.value)
