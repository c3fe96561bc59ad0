"""A model's folder from anybody, or half copied: what is used is whole, and what is not says which file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from tpas.__main__ import main as tpas
from tpas.configuration_tpas import TPASConfig
from tpas.modeling_tpas import TPASModel
from tpas.models.loading import load_model
from tpas.models.lora import add_lora
from tpas.processing_tpas import TPASProcessor
from tpas.training.arguments import FineTuningArguments
from tpas.training.start import load_start

NAME = "text_projection.weight"


def start_of_a_run(folder: Path) -> None:
    load_start(FineTuningArguments(data_root="", output_dir="", model_name_or_path=str(folder)))


def pushed(folder: Path) -> None:
    tpas(["push", str(folder), "user/name", "--dry_run"])


LOADERS = (lambda folder: load_model(str(folder)), start_of_a_run, pushed)
FOR_OTHERS = (*LOADERS, TPASModel.from_pretrained)


def refusals(folder: Path, loaders=FOR_OTHERS) -> list[str]:
    messages = []
    for load in loaders:
        with pytest.raises((ValueError, OSError, SystemExit)) as error:
            load(folder)
        messages.append(str(error.value))
    return messages


def with_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_renamed_and_foreign_weights_are_named(start):
    with_weights(start, lambda weights: weights.update(more=torch.zeros(2)))
    assert all("has 1 weights that are not the model's, such as more" in said for said in refusals(start))
    with_weights(start, lambda weights: [weights.pop("more"), weights.update(renamed=weights.pop(NAME))])
    expected = f"lacks 1 weights of the model, such as {NAME}, and has 1 others, such as renamed"
    assert all(expected in said for said in refusals(start))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(start, number):
    with_weights(start, lambda weights: weights[NAME].view(-1)[3:4].fill_(number))
    assert all(f"the weight {NAME} is not finite" in said for said in refusals(start))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_weights_of_another_type_are_named(start, dtype):
    with_weights(start, lambda weights: weights.update({NAME: weights[NAME].to(dtype)}))
    for said in refusals(start, LOADERS):
        assert f"model.safetensors: the weight {NAME} is of type" in said


def test_a_buffer_that_earlier_versions_saved_is_no_foreign_weight(start):
    more = {"text_model.embeddings.position_ids": torch.arange(32)[None]}
    with_weights(start, lambda weights: weights.update(more))
    assert load_model(str(start))[0].name_or_path == str(start)


@pytest.mark.parametrize("words", [None, {"[PAD]": 0, "[UNK]": 1}])
def test_a_tokenizer_without_words_is_refused(start, words):
    (start / "tokenizer.json").unlink()
    if words is not None:
        BertTokenizer(vocab=words).save_pretrained(start)
    loaders = (*LOADERS, TPASProcessor.from_pretrained)
    assert all(f"the tokenizer of {start} knows no words" in said for said in refusals(start, loaders))


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "hidden_size", 10**9),
        ("text_config", "vocab_size", 10**12),
        ("vision_config", "image_size", 10**6),
        ("vision_config", "window_size", 10**4),
        ("vision_config", "depths", [1, 10**9]),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_built(start, part, setting, value):
    config = json.loads((start / "config.json").read_text())
    config[part][setting] = value
    (start / "config.json").write_text(json.dumps(config))
    assert all(f"{setting} is " in said and "at most" in said for said in refusals(start))


def test_a_configuration_of_far_more_numbers_than_the_weights_is_refused(start):
    config = json.loads((start / "config.json").read_text())
    config["text_config"]["vocab_size"] = 2**26  # 8 gigabytes, which would be drawn at random first
    (start / "config.json").write_text(json.dumps(config))
    for said in refusals(start, LOADERS):
        assert "describes a model of 2,147," in said


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff{}"])
def test_a_damaged_file_of_settings_is_named(start, file, content):
    (start / file).write_bytes(content)
    for said in refusals(start, LOADERS):
        assert f"{start / file}: " in said
        assert said.endswith("get the file again")


@pytest.mark.parametrize("setting", ["image_mean", "size", "crop_size", "image_processor_type"])
@pytest.mark.parametrize("value", [None, -1, "x", [[]], {}])
def test_settings_of_another_kind_are_told_from_the_program_s_mistakes(start, setting, value):
    config = json.loads((start / "processor_config.json").read_text())
    config["image_processor"][setting] = value
    (start / "processor_config.json").write_text(json.dumps(config))
    said = "processor_config.json"
    try:
        assert load_model(str(start))[1].image_size == 32
    except ValueError as error:
        said = str(error)
    assert "processor_config.json" in said


def test_no_code_that_comes_along_is_run_and_nobody_is_asked(start, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    proof = tmp_path / "it ran"
    for file in ("tokenizer_config.json", "processor_config.json", "config.json"):
        content = json.loads((start / file).read_text())
        classes = {kind: "evil.Evil" for kind in ("AutoTokenizer", "AutoImageProcessor", "AutoProcessor")}
        for part in (content, content.get("image_processor", {})):
            part["auto_map"] = classes
        (start / file).write_text(json.dumps(content))
    (start / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    for load in (lambda folder: load_model(str(folder)), start_of_a_run, TPASProcessor.from_pretrained):
        load(start)
    assert not proof.exists()


def test_an_adapter_that_lacks_weights_or_has_others_is_refused(start, tmp_path):
    model, adapter = TPASModel.from_pretrained(start), tmp_path / "adapter"
    adapted: PeftModel = add_lora(model, 2, 2.0, 0.0)
    adapted.save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(settings | {"base_model_name_or_path": str(start)})
    )
    load_model(str(adapter))
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    first = next(name for name in whole if "lora_A" in name)
    for weights, message in (
        ({name: tensor for name, tensor in whole.items() if name != first}, f"lacks {first}"),
        (whole | {"more": torch.ones(1)}, "has, beside its own, more"),
        (whole | {first: torch.full_like(whole[first], float("nan"))}, f"{first} is not finite"),
    ):
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            load_model(str(adapter))
    save_file(whole, file, metadata={"format": "pt"})
    for rank in (10**9, None):
        (adapter / "adapter_config.json").write_text(
            json.dumps(settings | {"base_model_name_or_path": str(start), "r": rank})
        )
        with pytest.raises(ValueError, match=f"says rank {rank}"):
            load_model(str(adapter))
    shutil.copy(adapter / "adapter_config.json", tmp_path / "adapter_config.json")
    with pytest.raises(ValueError, match="says rank|has no adapter_model"):
        load_model(str(tmp_path / "adapter"))


def test_a_configuration_of_xvlm_base_is_within_the_bounds():
    assert TPASConfig().vision_config.window_size == 12
