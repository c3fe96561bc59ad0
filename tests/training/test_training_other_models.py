"""Fine-tuning of other libraries' models: every parameter, LoRA, resume, two processes."""

import json
import shutil
from functools import partial

import pytest
import torch
import training_runs
from accelerate import Accelerator, debug_launcher
from PIL import Image
from tiny_retrieval_models import FAMILIES
from training_runs import losses_of, train
from transformers import AutoModel, BlipForImageTextRetrieval, CLIPModel

from tpas.models.loading import load_model
from tpas.models.lora import add_lora
from tpas.objectives import contrastive_loss
from tpas.training.data import PairCollator
from tpas.training.gradient_cache import backward_in_chunks
from tpas.training.objective import FineTuningObjective

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def batch_of(processor) -> dict[str, torch.Tensor]:
    items = []
    for number, color in enumerate(["red", "blue", "green", "black"]):
        image = Image.new("RGB", (40, 48 + number), (60 * number, 90, 200 - 50 * number))
        item = {"image": image, "caption": f"a man in a {color} coat is running", "image_id": str(number)}
        items.append(item | {"unreadable": []})
    batch = PairCollator(processor)(items)
    del batch["unreadable"]
    return batch


flags = partial(training_runs.flags, num_train_epochs=2, batch_size=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_reaches_all_that_is_trained(folders, family):
    """DDP would wait for one that never comes."""
    model, processor = load_model(str(folders[family]))
    objective = FineTuningObjective(model.train())
    losses = objective(**batch_of(processor))
    assert set(losses) == set(objective.loss_names)
    assert ("matching_loss" in losses) == (family == "blip")
    losses["loss"].backward()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert "model.temperature.value" in trained
    assert not [name for name, parameter in trained.items() if parameter.grad is None]
    left_out = {name for name, p in objective.named_parameters() if not p.requires_grad}
    assert all("logit_" in name for name in left_out), left_out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_contrastive_loss_is_the_papers(folders, family):
    model, processor = load_model(str(folders[family]))
    objective, batch = FineTuningObjective(model.eval()), batch_of(processor)
    with torch.no_grad():
        loss = objective(**batch)["contrastive_loss"]
        ids = batch.pop("image_ids")
        texts = model.get_text_features(batch.pop("input_ids"), batch.pop("attention_mask")).pooler_output
        images = model.get_image_features(**batch).pooler_output
        expected = contrastive_loss(images, texts, model.temperature(), ids)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("family", ["clip", "siglip2", "blip"])
def test_gradients_in_chunks_are_those_of_the_whole_batch(folders, family):
    model, processor = load_model(str(folders[family]), dtype=torch.float64)
    objective = FineTuningObjective(model.double().eval())
    batch = batch_of(processor)
    batch["pixel_values"] = batch["pixel_values"].double()
    torch.manual_seed(1)
    objective(**batch)["loss"].backward()
    expected = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    torch.manual_seed(1)
    backward_in_chunks(objective, Accelerator(), 3, **batch)
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)


def test_a_run_learns_and_leaves_a_folder_of_the_models_own_library(folders, small_pab, tmp_path):
    output = tmp_path / "run"
    changes = {"augmentation": False, "num_train_epochs": 12, "learning_rate": 3e-3}
    train(flags(small_pab, folders["clip"], output, report_to="tensorboard", **changes))
    losses = losses_of(output)
    assert sum(losses[-2:]) < 0.5 * sum(losses[:2])
    assert list((output / "tensorboard").rglob("events.out.tfevents.*"))
    library = CLIPModel.from_pretrained(output / "best")
    model, _ = load_model(str(output / "best"))
    assert library.logit_scale.exp().item() == pytest.approx(1 / model.temperature().item(), rel=1e-4)
    assert library.logit_scale.item() != CLIPModel.from_pretrained(folders["clip"]).logit_scale.item()


@pytest.mark.parametrize("family", ["clip", "siglip2", "blip"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(folders, small_pab, tmp_path, family):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    checkpoints = {"checkpoint_every": 1, "checkpoints_kept": 9}
    for output in (whole, parts):
        train(flags(small_pab, folders[family], output, **checkpoints))
    for checkpoint in sorted((parts / "checkpoints").iterdir())[1:]:  # as after a kill in the second step
        shutil.rmtree(checkpoint)
    train(flags(small_pab, folders[family], parts, **checkpoints, resume_from_checkpoint="last"))
    assert losses_of(parts) == losses_of(whole)
    library = BlipForImageTextRetrieval if family == "blip" else AutoModel
    expected = library.from_pretrained(whole / "last").state_dict()
    weights = library.from_pretrained(parts / "last").state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_adapters_train_little_of_every_encoder(folders, family, targets):
    model, processor = load_model(str(folders[family]))
    objective = FineTuningObjective(add_lora(model, 2, 4.0, 0.0, targets).train())
    objective(**batch_of(processor))["loss"].backward()
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert any("temperature" in name for name in trained)
    for encoder in ("vision_model", "text_encoder" if family == "blip" else "text_model"):
        assert any("lora_" in name and encoder in name for name in trained)
    without = [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, without


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
def test_recomputed_activations_give_the_same_gradients(folders, family, lora):
    def gradients(recomputing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network, processor = load_model(str(folders[family]))
        model = add_lora(network, 2, 4.0, 0.0) if lora else network
        if recomputing:
            network.activation_checkpointing_enable({"use_reentrant": False})
        objective = FineTuningObjective(model.train())
        torch.manual_seed(1)
        objective(**batch_of(processor))["loss"].backward()
        return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}

    expected, recomputed = gradients(False), gradients(True)
    assert list(recomputed) == list(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(recomputed[name], gradient)


@pytest.mark.parametrize("family", ["clip", "blip"])
def test_an_adapter_is_kept_loaded_and_merged(folders, small_pab, tmp_path, family):
    output = tmp_path / "run"
    train(flags(small_pab, folders[family], output, lora_rank=2, merge=True, num_train_epochs=1))
    assert (output / "best" / "adapter_model.safetensors").exists()
    assert not (output / "best" / "model.safetensors").exists()
    adapted, processor = load_model(str(output / "best"))
    merged, _ = load_model(str(output / "merged"))
    start, _ = load_model(str(folders[family]))
    inputs = processor(text=["a man in a red coat is running"])
    with torch.no_grad():
        embeds = [m.eval().get_text_features(**inputs).pooler_output for m in (adapted, merged, start)]
    torch.testing.assert_close(embeds[0], embeds[1], atol=1e-6, rtol=0)
    assert not torch.allclose(embeds[0], embeds[2], atol=1e-4)
    assert adapted.temperature().item() == pytest.approx(merged.temperature().item(), rel=1e-5)
    train(flags(small_pab, output / "best", tmp_path / "more", num_train_epochs=1))  # from an adapter
    with pytest.raises(SystemExit, match="start from the whole model"):
        train(flags(small_pab, output / "best", tmp_path / "no", lora_rank=2))


@pytest.mark.parametrize("family", ["clip", "blip"])
def test_two_processes_train_as_one(folders, small_pab, tmp_path, family):
    same = {"augmentation": False} | ({"negatives": "global"} if family == "blip" else {})
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = flags(small_pab, folders[family], two, batch_size=4, **same)
    debug_launcher(train, (arguments,), num_processes=2)
    train(flags(small_pab, folders[family], one, **same))
    assert json.loads((two / "training_arguments.json").read_text())["num_processes"] == 2
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-4)


@pytest.mark.parametrize(
    ("family", "setting", "message"),
    [
        ("clip", {"hard_negatives": True}, "--hard_negatives True is for models with a stage 2 of their own"),
        ("clip", {"negatives": "global"}, "--negatives global is for models with a stage 2"),
        ("blip", {"layer_decay": 0.9}, "--layer_decay 0.9 is for TPAS models"),
        ("blip", {"masked_language_modelling_weight": 1}, "modelling_weight 1.0 is for TPAS models"),
        ("clip", {"torch_compile": True}, "--torch_compile True is for TPAS models"),
    ],
)
def test_what_a_model_cannot_train_is_refused(folders, small_pab, tmp_path, family, setting, message):
    with pytest.raises(SystemExit, match=message):
        train(flags(small_pab, folders[family], tmp_path / "run", **setting))
    assert not (tmp_path / "run").exists()
