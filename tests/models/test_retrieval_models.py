"""Other libraries' retrieval models behind the one interface: real classes at toy size, random weights."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from tiny_retrieval_models import FAMILIES, cached_snapshot, noise_images
from transformers import AutoProcessor, AutoTokenizer, BlipForImageTextRetrieval, CLIPModel, SiglipModel

from tpas.commands.evaluate import main as evaluate_main
from tpas.evaluation.ranking import rank_gallery
from tpas.modeling_tpas import TPASModel
from tpas.models.interface import can_match
from tpas.models.loading import load_model, may_run_code
from tpas.models.transformers_encoders import image_size_of, positions_of
from tpas.training.arguments import FineTuningArguments
from tpas.training.start import load_start

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
CAPTIONS = ["a man in a red coat is running on the street", "a woman is lying on the grass"]
CAPTIONS += ["an old man in a blue shirt", "a woman in a red coat is walking on the street"]
IMAGES = 20  # two passes


def rank(folder: Path, **settings):
    model, processor = load_model(str(folder))
    query_ids = [f"query {row}" for row in range(len(CAPTIONS))]
    gallery_ids = [f"image {column:02}" for column in range(IMAGES)]
    inputs = (model, processor, CAPTIONS, query_ids, noise_images(IMAGES), gallery_ids)
    return rank_gallery(*inputs, shortlist=8, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_those_of_the_library_itself(folders, family):
    """Against the forward pass of the class, over what the class's own processor makes."""
    folder = folders[family]
    model, processor = load_model(str(folder))
    assert not any(module.training for module in model.modules())
    images = noise_images(3)
    inputs = processor(images=images, text=CAPTIONS)
    texts = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    library = type(model.network).from_pretrained(folder)
    with torch.no_grad():
        image = model.get_image_features(**inputs)
        text = model.get_text_features(**texts)
        if family in ("siglip", "siglip2"):  # they are asked without a mask
            del texts["attention_mask"]
        if family == "blip":
            texts["use_itm_head"] = False
            one_by_one = [library(pixel_values=pixels[None], **texts) for pixels in inputs["pixel_values"]]
            cosines = torch.stack([output.itm_score[0] for output in one_by_one])
        else:
            output = library(**inputs, **texts)
            cosines = output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(image.pooler_output @ text.pooler_output.T, cosines, atol=1e-5, rtol=0)
    for embeds in (image.pooler_output, text.pooler_output):
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(embeds)))
    assert can_match(model) == (family == "blip")
    assert (image.last_hidden_state is None) == (family != "blip")


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_inputs_are_those_of_the_librarys_processor(folders, family):
    _, processor = load_model(str(folders[family]))
    own = AutoProcessor.from_pretrained(folders[family], backend="pil")
    padding = "longest" if family == "clip" else "max_length"
    expected = own(images=noise_images(3), text=CAPTIONS, padding=padding, return_tensors="pt")
    inputs = processor(images=noise_images(3), text=CAPTIONS)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], atol=0.02, rtol=0)


def test_match_logits_are_blips(folders):
    model, processor = load_model(str(folders["blip"]))
    library = BlipForImageTextRetrieval.from_pretrained(folders["blip"])
    inputs = processor(images=noise_images(len(CAPTIONS)), text=CAPTIONS)
    with torch.no_grad():
        image = model.get_image_features(inputs["pixel_values"])
        text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        logits = model.match(image.last_hidden_state, text.last_hidden_state, inputs["attention_mask"])
        # As in BLIP's own retrieval evaluation; transformers leaves it to the caller.
        inputs["input_ids"][:, 0] = library.config.text_config.vocab_size - 1
        expected = library(**inputs).itm_score
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert (logits[:, 1].std() > 1e-3).item()


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_siglip_sees_lower_case_and_its_full_length(folders, family):
    """Its last position is pooled, so a caption that is cut earlier still has the padding of training."""
    model, processor = load_model(str(folders[family]))
    lower, upper = processor(text=["a man in a red coat"]), processor(text=["A Man in a RED coat"])
    assert torch.equal(lower["input_ids"], upper["input_ids"])
    positions = model.config.text_config.max_position_embeddings
    processor.max_text_length = 4
    cut = processor(text=["a man in a red coat", "a man"])
    assert cut["input_ids"].shape == cut["attention_mask"].shape == (2, positions)
    assert cut["attention_mask"].sum(dim=1).max() == 4
    padding = cut["input_ids"][cut["attention_mask"] == 0]
    assert (padding == processor.tokenizer.pad_token_id).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_changes_no_bit_of_a_ranking(folders, family):
    one, other = rank(folders[family]), rank(folders[family], batch_size=1, token_memory=0)
    matched = ["embeddings", "embeddings_sca", "matching", "sca"]
    expected = matched if family == "blip" else ["embeddings", "sca"]
    assert list(one.indices) == expected
    assert one.final_stage == ("matching" if family == "blip" else "embeddings")
    for stage in one.indices:
        assert torch.equal(one.indices[stage], other.indices[stage])
        assert torch.equal(one.scores[stage], other.scores[stage])
    assert one.scores["embeddings"].std() > 1e-3


def rank_on_two_processes(folder: Path, model: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    ranked = rank(model, accelerator=accelerator, batch_size=3)
    torch.save([ranked.indices, ranked.scores], folder / f"{accelerator.process_index}.pt")


@pytest.mark.parametrize("family", ["siglip2", "blip"])
def test_two_processes_give_the_bits_of_one(folders, family, tmp_path):
    reference = rank(folders[family])
    debug_launcher(rank_on_two_processes, (tmp_path, folders[family]), num_processes=2)
    for process in range(2):
        indices, scores = torch.load(tmp_path / f"{process}.pt", weights_only=True)
        for stage in reference.indices:
            assert torch.equal(indices[stage], reference.indices[stage])
            assert torch.equal(scores[stage], reference.scores[stage])


@pytest.mark.parametrize("family", ["clip", "blip"])
def test_a_plain_folder_is_evaluated_by_the_command(folders, family, small_pab, tmp_path, capsys):
    output = tmp_path / "results.json"
    arguments = ["--model", str(folders[family]), "--data_root", str(small_pab), "--output", str(output)]
    evaluate_main(
        [*arguments, "--write_scores", str(tmp_path / "scores.npz"), "--plots", str(tmp_path / "plots")]
    )
    results = json.loads(output.read_text())
    assert results["final_stage"] == ("matching" if family == "blip" else "embeddings")
    assert 0 <= results["stages"]["sca"]["all"]["recall@1"] <= 1
    assert "embeddings" in capsys.readouterr().out
    written = {path.name for path in tmp_path.glob("scores.*")}
    assert written == {"scores.embeddings.npz", *(["scores.matching.npz"] if family == "blip" else [])}


def test_the_temperature_is_read_and_kept(folders, tmp_path):
    for family, library in (("clip", CLIPModel), ("siglip", SiglipModel)):
        model, processor = load_model(str(folders[family]))
        with torch.no_grad():
            model.temperature.value.fill_(0.02)
        model.save_pretrained(tmp_path / family)
        processor.save_pretrained(tmp_path / family)
        usual = (tmp_path / family / "config.json").stat().st_mode
        assert {file.stat().st_mode for file in (tmp_path / family).glob("*.safetensors")} == {usual}
        scale = library.from_pretrained(tmp_path / family).logit_scale.exp().item()
        assert scale == pytest.approx(50, rel=1e-5)
        again, _ = load_model(str(tmp_path / family))
        assert again.temperature().item() == pytest.approx(0.02, rel=1e-5)
    model, _ = load_model(str(folders["blip"]))
    with torch.no_grad():
        model.temperature.value.fill_(0.02)
    model.save_pretrained(tmp_path / "blip")
    shutil.copytree(folders["blip"], tmp_path / "blip", dirs_exist_ok=True, ignore=lambda *_: ["config.json"])
    assert load_model(str(tmp_path / "blip"))[0].temperature().item() == pytest.approx(0.02)


def test_our_own_model_goes_the_same_way(start):
    model, processor = load_model(str(start))
    named, _ = load_model(f"tpas:{start}")
    assert type(model) is type(named) is TPASModel
    embeds = model.get_text_features(**processor(text=CAPTIONS)).pooler_output
    torch.testing.assert_close(F.normalize(embeds, dim=-1), embeds)


def refusal(model: str | Path, small_pab: Path, *more: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        evaluate_main(["--model", str(model), "--data_root", str(small_pab), *more])
    message = str(stopped.value)
    assert "\n" not in message
    return message


def test_what_is_no_retrieval_model_is_refused_in_one_line(folders, small_pab, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    vision = tmp_path / "vision"
    shutil.copytree(folders["clip"], vision)
    config = json.loads((vision / "config.json").read_text())
    (vision / "config.json").write_text(json.dumps(config["vision_config"] | {"model_type": "vit"}))
    message = "ViTModel has no get_image_features and no get_text_features"
    assert message in refusal(vision, small_pab)

    captioner = tmp_path / "captioner"  # BLIP without the heads of retrieval
    shutil.copytree(folders["blip"], captioner)
    weights = load_file(captioner / "model.safetensors")
    weights = {name: value for name, value in weights.items() if not name.startswith("itm_head")}
    save_file(weights, captioner / "model.safetensors", metadata={"format": "pt"})
    message = "lacks 2 weights of the model, such as itm_head.bias"
    assert message in refusal(captioner, small_pab)

    wordless = tmp_path / "wordless"
    shutil.copytree(folders["clip"], wordless, ignore=shutil.ignore_patterns("tokenizer*"))
    assert "knows no words: its files (tokenizer.json" in refusal(wordless, small_pab)
    assert "is a model of type 'clip'" in refusal(f"blip:{folders['clip']}", small_pab)
    assert "nowhere" in refusal(tmp_path / "nowhere", small_pab)

    for flags, message in (
        (("--fusion_weight", "0.3"), "the fusion weight 0.3 is of embeddings and matching"),
        (("--image_size", "64"), "only TPAS models are resized"),
        (("--max_text_length", "99"), "--max_text_length must be between 3 and the model's 24"),
    ):
        assert message in refusal(folders["clip"], small_pab, *flags)


def test_code_that_comes_with_a_model_needs_consent(folders, small_pab, tmp_path):
    folder = tmp_path / "custom"
    shutil.copytree(folders["clip"], folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(
        "from transformers import CLIPConfig, CLIPModel\n\n"
        "class Config(CLIPConfig):\n    model_type = 'mine'\n\n"
        "class Model(CLIPModel):\n    config_class = Config\n"
    )
    message = refusal(folder, small_pab)
    assert "comes with code of its own" in message
    assert "--trust_remote_code" in message
    arguments = ["--model", str(folder), "--data_root", str(small_pab), "--trust_remote_code"]
    evaluate_main([*arguments, "--output", str(tmp_path / "results.json")])
    assert (tmp_path / "results.json").exists()


def test_code_that_may_change_or_lies_elsewhere_is_refused():
    commit, own = "0123456789" * 4, {"AutoModel": "mine.Model", "AutoTokenizer": ["mine.Slow", None]}
    with pytest.raises(ValueError, match="read it, then add --trust_remote_code"):
        may_run_code("some/model", own, False, commit)
    for moving in (None, "main"):
        with pytest.raises(ValueError, match="may change by tomorrow: pin .* --revision COMMIT"):
            may_run_code("some/model", own, True, moving)
    assert may_run_code("some/model", own, True, commit)
    with pytest.raises(ValueError, match="lies in another repository, other/code"):
        may_run_code("some/model", own | {"AutoModel": "other/code--mine.Model"}, True, commit)
    # Without any, a tokenizer may still bring code.
    allowed = [may_run_code("some/model", None, True, at) for at in (None, "main", commit)]
    assert allowed == [False, False, True]
    assert not may_run_code("some/model", None, False, commit)


def test_a_tokenizers_code_does_not_run_without_consent(folders, tmp_path):
    folder, trace = tmp_path / "custom", tmp_path / "trace"
    shutil.copytree(folders["clip"], folder)
    files = {"AutoTokenizer": "tokenizer_config.json", "AutoImageProcessor": "preprocessor_config.json"}
    for key, file in files.items():
        config = json.loads((folder / file).read_text())
        config["auto_map"] = {key: ["mine.Own", "mine.Own"] if key == "AutoTokenizer" else "mine.Own"}
        (folder / file).write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).write_text('ran')\n")
    load_model(str(folder))  # transformers has classes of its own for these
    assert not trace.exists()


def test_a_tokenizers_missing_package_is_named_with_the_line_that_installs_it(folders, monkeypatch):
    def without(*arguments, **settings):
        raise ImportError("\nSiglipTokenizer requires the SentencePiece library\nMore.")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", without)
    message = r"its tokenizer needs .* pip install -e '\.\[baselines\]' \(SiglipTokenizer requires"
    with pytest.raises(ValueError, match=message):
        load_model(str(folders["siglip"]))


def test_a_revision_reaches_every_file_of_our_own_model(start):
    commit = "0123456789" * 4
    shutil.copytree(start, cached_snapshot("some/tpas", commit), dirs_exist_ok=True)
    load_model("some/tpas", revision=commit)
    load_start(FineTuningArguments("", "", model_name_or_path="some/tpas", revision=commit))
    with pytest.raises(OSError, match="some/tpas"):
        load_model("some/tpas")


def test_sizes_that_a_configuration_does_not_say_are_refused():
    vision = SimpleNamespace(image_size=[32, 32])
    assert image_size_of("x", SimpleNamespace(vision_config=vision)) == 32
    with pytest.raises(ValueError, match="x: its configuration does not say how large its images are"):
        image_size_of("x", SimpleNamespace())
    with pytest.raises(ValueError, match="x: its configuration does not say how many tokens it takes"):
        positions_of("x", SimpleNamespace(text_config=None))
