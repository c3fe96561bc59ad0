"""LoRA: small adapters that load, merge and resume."""

import json
import re
import shutil
from functools import partial

import pytest
import torch
import training_runs
from peft import PeftModel
from safetensors.torch import load_file, save_file
from training_runs import stopped_after, train
from transformers import AutoModel

from tpas.commands.evaluate import main as evaluate
from tpas.modeling_tpas import TPASModel
from tpas.models.loading import lasting_name, load_model, load_tpas
from tpas.models.lora import add_lora
from tpas.processing_tpas import TPASProcessor
from tpas.training.run_folder import save_model

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
OUTPUTS = ("image_embeds", "text_embeds", "match_logits")


flags = partial(training_runs.flags, lora_rank=4, num_train_epochs=2, batch_size=4, learning_rate=1e-2)


@torch.no_grad()
def answers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    output = model.eval()(pixels, torch.randint(5, 60, (3, 9), generator=generator))
    return {name: output[name] for name in OUTPUTS}


def assert_same_answers(one, other, tolerance=1e-6):
    for name in OUTPUTS:
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=0)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's question
def test_an_adapter_is_saved_alone_loads_over_its_start_and_merges(small_pab, start, tmp_path, capsys):
    run = tmp_path / "run"
    train(flags(small_pab, start, run, merge=True))
    for name in ("best", "last"):
        assert not list((run / name).glob("model*.safetensors"))
        assert (run / name / "adapter_model.safetensors").stat().st_size < 100_000
        TPASProcessor.from_pretrained(run / name)
    sizes = json.loads((run / "training_arguments.json").read_text())
    assert 0 < sizes["trained_parameters"] < 0.4 * sizes["parameters"]

    before = TPASModel.from_pretrained(start)
    base = AutoModel.from_pretrained(start, trust_remote_code=True)
    assert type(base) is not TPASModel
    expected = answers(PeftModel.from_pretrained(base, run / "best"))
    assert not torch.allclose(expected["match_logits"], answers(before)["match_logits"], atol=1e-3)
    assert_same_answers(answers(load_model(str(run / "best"))[0]), expected)
    merged = TPASModel.from_pretrained(run / "merged")
    assert_same_answers(answers(merged), expected)
    TPASProcessor.from_pretrained(run / "merged")
    # What is trained whole came along; what is frozen has not moved.
    assert merged.temperature.value != before.temperature.value
    frozen = "text_model.embeddings.word_embeddings.weight"
    assert torch.equal(merged.state_dict()[frozen], before.state_dict()[frozen])

    capsys.readouterr()
    evaluate(["--model", str(run / "best"), "--data_root", str(small_pab)])
    from_adapter = capsys.readouterr().out
    evaluate(["--model", str(run / "merged"), "--data_root", str(small_pab)])
    assert capsys.readouterr().out == from_adapter


def test_low_rank_updates_are_in_all_three_encoders(start):
    model = add_lora(TPASModel.from_pretrained(start), rank=2, alpha=4, dropout=0.0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    updated = {name.removeprefix("base_model.model.").partition(".")[0] for name in trained}
    heads = {"image_projection", "text_projection", "matching_head", "temperature"}
    assert updated == {"vision_model", "text_model", "cross_modal_encoder"} | heads


def test_targets_are_chosen_and_unknown_ones_refused_at_once(small_pab, start, tmp_path):
    train(flags(small_pab, start, tmp_path / "run", lora_targets=r"text_model\..*\.dense", max_train_steps=1))
    written = load_file(tmp_path / "run" / "last" / "adapter_model.safetensors")
    layers = {name for name in written if ".lora_" in name}
    assert layers
    assert all("text_model" in name and ".dense." in name for name in layers)
    refusals = {"wing": "'wing' fits no layer of the model", "(": r"'\(' is no regular expression"}
    for targets, message in refusals.items():
        with pytest.raises(SystemExit, match=f"--lora_targets {message}"):
            train(flags(small_pab, start, tmp_path / "other", lora_targets=targets))
    assert not (tmp_path / "other").exists()


def test_an_adapter_over_random_weights_is_refused(small_pab, start, tmp_path):
    words = flags(small_pab, start, tmp_path / "run")
    words[words.index("--model_name_or_path")] = "--config_name"
    with pytest.raises(SystemExit, match="--lora_rank keeps an adapter alone.*give --model_name_or_path"):
        train(words)


def test_a_base_is_found_from_any_folder_and_by_the_flag_where_it_was_moved(
    small_pab, start, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train(flags(small_pab, start.name, "run", max_train_steps=1))
    adapter, elsewhere = str(tmp_path / "run" / "last"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    expected = answers(load_model(adapter)[0])

    moved = start.rename(tmp_path / "moved")
    with pytest.raises(OSError, match=r"last is an adapter of /\S*start, .*--base_model says where it is"):
        load_model(adapter)
    assert_same_answers(answers(load_model(adapter, base_model=str(moved))[0]), expected)
    assert_same_answers(answers(load_tpas(adapter, base_model=str(moved))[0]), expected)
    evaluate(["--model", adapter, "--data_root", str(small_pab), "--base_model", str(moved)])
    assert "embeddings" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--base_model \S*run is for adapters, and \S*moved is none"):
        load_model(str(moved), base_model=str(tmp_path / "run"))


def test_an_adapter_over_other_weights_is_refused_by_both_names(small_pab, start, tmp_path):
    train(flags(small_pab, start, tmp_path / "run", max_train_steps=1))
    adapter = str(tmp_path / "run" / "last")
    expected, model = answers(load_model(adapter)[0]), TPASModel.from_pretrained(start)
    with torch.no_grad():  # what an adapter brings along itself may differ
        model.matching_head.dense.weight.mul_(2)
    model.save_pretrained(start)
    assert_same_answers(answers(load_model(adapter)[0]), expected)
    with torch.no_grad():
        model.vision_model.layernorm.weight.mul_(1.01)
    shutil.copytree(start, tmp_path / "retrained")
    model.save_pretrained(tmp_path / "retrained")
    for dtype in (torch.float32, torch.bfloat16, None):
        load_model(adapter, dtype=dtype)
        with pytest.raises(
            ValueError, match=r"last was trained over \S*start .*, and \S*retrained has other"
        ):
            load_model(adapter, dtype=dtype, base_model=str(tmp_path / "retrained"))


def test_an_adapter_of_an_earlier_version_loads_with_one_warning(small_pab, start, tmp_path, caplog):
    train(flags(small_pab, start, tmp_path / "run", max_train_steps=1))
    adapter = tmp_path / "run" / "last"
    expected = answers(load_model(str(adapter))[0])
    (adapter / "base_model.json").unlink()
    caplog.clear()
    assert_same_answers(answers(load_model(str(adapter))[0]), expected)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert [record.getMessage() for record in warnings] == [
        f"{adapter} does not say which weights it belongs to: {start} is taken unchecked"
    ]


@pytest.mark.parametrize("content", ["", "null", "{}", '{"fingerprint": []}'])
def test_a_damaged_word_about_the_base_is_named(small_pab, start, tmp_path, content):
    train(flags(small_pab, start, tmp_path / "run", max_train_steps=1))
    adapter = tmp_path / "run" / "last"
    (adapter / "base_model.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(adapter))):
        load_model(str(adapter))


@pytest.mark.parametrize("family", ["clip", "blip"])
def test_adapters_of_other_models_know_their_base_too(folders, family, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folders[family], base)
    model, processor = load_model(str(base))
    adapted = add_lora(model, rank=2, alpha=4, dropout=0.0, revision="a" * 40)
    save_model(adapted, processor, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (str(base), "a" * 40)
    load_model(str(tmp_path / "adapter"))
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith("patch_embedding.weight"))
    save_file(weights | {name: 2 * weights[name]}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"adapter was trained over \S*base as it was then"):
        load_model(str(tmp_path / "adapter"))


def test_a_name_is_understood_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/clip", "tower/weights"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "weights.pt").touch()
    for name, expected in (
        ("a/clip", f"{tmp_path}/a/clip"),
        ("blip:./a/../a/clip", f"blip:{tmp_path}/a/clip"),
        ("open_clip:ViT-B-32/weights.pt", f"open_clip:ViT-B-32/{tmp_path}/weights.pt"),
        ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai"),
        ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
    ):
        assert lasting_name(name) == expected


def test_an_adapter_without_its_start_names_it(small_pab, start, tmp_path):
    train(flags(small_pab, start, tmp_path / "run", max_train_steps=1))
    start.rename(tmp_path / "moved")
    with pytest.raises(OSError, match=r"last is an adapter of \S*start, which cannot be loaded"):
        load_model(str(tmp_path / "run" / "last"))


def test_an_adapter_is_made_over_what_can_be_loaded_again(small_pab, start, tmp_path):
    train(flags(small_pab, start, tmp_path / "run", max_train_steps=1))
    with pytest.raises(SystemExit, match=r"over what the adapter \S*last makes of its start.*--merge"):
        train(flags(small_pab, tmp_path / "run" / "last", tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    # All weights may go on from an adapter: they are saved whole.
    train(flags(small_pab, tmp_path / "run" / "last", tmp_path / "other", lora_rank=0, max_train_steps=1))
    TPASModel.from_pretrained(tmp_path / "other" / "last")


def test_an_adapter_of_another_architecture_is_refused(small_pab, start, tmp_path):
    train(flags(small_pab, start, tmp_path / "run", max_train_steps=1))
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ValueError, match="start is no TPAS model, as is needed here"):
        load_tpas(str(tmp_path / "run" / "last"))


def test_a_start_in_half_precision_is_merged_in_the_precision_of_training(small_pab, start, tmp_path):
    TPASModel.from_pretrained(start).to(torch.bfloat16).save_pretrained(start)
    train(flags(small_pab, start, tmp_path / "run", max_train_steps=1, merge=True))
    merged = TPASModel.from_pretrained(tmp_path / "run" / "merged")
    assert merged.dtype == torch.float32
    trained, _ = load_model(str(tmp_path / "run" / "best"))
    assert_same_answers(answers(merged), answers(trained))


def test_gradient_checkpointing_changes_nothing(small_pab, start, tmp_path):
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        train(flags(small_pab, start, tmp_path / name, gradient_checkpointing=checkpointing))
    files = (tmp_path / name / "last" / "adapter_model.safetensors" for name in ("plain", "checkpointed"))
    plain, other = map(load_file, files)
    for name, tensor in plain.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=0)


def test_a_stopped_run_goes_on_bit_equal(small_pab, start, tmp_path):
    train(flags(small_pab, start, tmp_path / "whole"))
    with pytest.raises(SystemExit, match="143"):
        stopped_after(3, flags(small_pab, start, tmp_path / "run")).train()
    train([*flags(small_pab, start, tmp_path / "run"), "--resume_from_checkpoint", "last"])
    whole, run = (load_file(tmp_path / n / "last" / "adapter_model.safetensors") for n in ("whole", "run"))
    assert all(torch.equal(tensor, run[name]) for name, tensor in whole.items())
