"""What can be switched on beside the paper's recipe, each through the command a user types."""

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import training_runs
from PIL import ImageChops, ImageOps
from safetensors.torch import load_file
from training_runs import parsed, read_log, stopped_after, train, weights
from transformers import BertConfig, BertModel

from tpas.configuration_tpas import TPASConfig
from tpas.data.pab import load_pab
from tpas.data.pab_images import open_image
from tpas.engine.encoding import encode_texts
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.training.arguments import FineTuningArguments
from tpas.training.caption_augmentation import swap_left_right
from tpas.training.data import PairCollator, TrainingPairs, stable_number
from tpas.training.fine_tuning import Run, warn_of_few_queries
from tpas.training.image_augmentation import Augmentation
from tpas.training.optimizer import LearningRates, build_optimizer, describe_groups
from tpas.training.subsets import diverse_subset

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
FRACTION = 0.34  # of the pairs, for validation, as in `flags`: 16 are left to train on


# Two epochs of four steps.
flags = partial(training_runs.flags, num_train_epochs=2, batch_size=4, evaluate_every=0)


def checkpoint_weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    state = load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def training_rows(small_pab: Path):
    return load_pab(small_pab, "train", validation_fraction=FRACTION)


def test_a_run_with_every_addition_goes_on_bit_equal(small_pab, start, tmp_path):
    everything = {
        **{"evaluate_every": 1, "negatives": "global", "hard_negatives": True, "second_view_weight": 0.8},
        **{"masked_language_modelling_weight": 1.0, "label_smoothing": 0.1, "crop_probability": 0.5},
        **{"erasing_probability": 0.6, "swap_left_right": True, "group_by_length": True},
        **{"cached_chunk_size": 3, "layer_decay": 0.9, "multiplied_parameters": "projection"},
        **{"ema_decay": 0.9, "average_last_epochs": 2, "mixed_precision": "bf16"},
    }
    train(flags(small_pab, start, tmp_path / "whole", **everything))
    with pytest.raises(SystemExit, match="143"):
        stopped_after(6, flags(small_pab, start, tmp_path / "run", **everything)).train()
    train([*flags(small_pab, start, tmp_path / "run", **everything), "--resume_from_checkpoint", "last"])

    assert read_log(tmp_path / "run") == read_log(tmp_path / "whole")
    for name in ("best", "last", "averaged"):
        whole, run = weights(tmp_path / "whole" / name), weights(tmp_path / "run" / name)
        assert all(torch.equal(tensor, run[key]) for key, tensor in whole.items()), name
    entries = read_log(tmp_path / "whole")
    assert "masked_language_modelling_loss" in entries[0]
    assert [entry.get("weights") for entry in entries if "evaluation" in entry] == [None, None, "averaged"]


def test_the_moving_average_is_what_is_kept(small_pab, start, tmp_path):
    run = tmp_path / "run"
    changes = {"ema_decay": 0.75, "max_train_steps": 3, "checkpoint_every": 1, "checkpoints_kept": 9}
    train(flags(small_pab, start, run, **changes))
    first, second, third = (checkpoint_weights(run, step) for step in (1, 2, 3))
    kept = weights(run / "last")
    for name in ("image_projection.weight", "matching_head.classifier.bias", "temperature.value"):
        average = 0.75 * (0.75 * first[name] + 0.25 * second[name]) + 0.25 * third[name]
        torch.testing.assert_close(kept[name], average)
        assert not torch.equal(kept[name], third[name])


def test_the_last_epochs_are_averaged(small_pab, start, tmp_path):
    run = tmp_path / "run"
    train(flags(small_pab, start, run, average_last_epochs=2, num_train_epochs=3, checkpoints_kept=9))
    steps = [int(path.name[5:]) for path in sorted((run / "checkpoints").iterdir())]
    assert len(steps) == 3
    _, second, third = (checkpoint_weights(run, step) for step in steps)
    averaged, last = weights(run / "averaged"), weights(run / "last")
    for name in ("image_projection.weight", "matching_head.classifier.bias"):
        torch.testing.assert_close(averaged[name], (second[name] + third[name]) / 2)
        assert torch.equal(last[name], third[name])


def test_a_run_stops_early_and_stays_stopped(small_pab, start, tmp_path, caplog):
    caplog.set_level("INFO")
    changes = {"evaluate_every": 1, "early_stopping_patience": 2, "num_train_epochs": 9, "learning_rate": 0.0}
    arguments = flags(small_pab, start, tmp_path / "run", **changes)
    train(arguments)
    log = read_log(tmp_path / "run")
    steps_per_epoch = len(training_rows(small_pab)) // 4
    evaluated = [entry["step"] for entry in log if "evaluation" in entry]
    assert evaluated == [steps_per_epoch * epoch for epoch in (1, 2, 3)]
    assert f"stopped after step {3 * steps_per_epoch} of {9 * steps_per_epoch}" in caplog.text
    train([*arguments, "--resume_from_checkpoint", "last"])
    assert read_log(tmp_path / "run") == log


def test_subsets_can_be_compared_at_equal_steps(small_pab, start, tmp_path):
    train(flags(small_pab, start, tmp_path / "run", pairs=8, steps_as_pairs=17, num_train_epochs=3))
    settings = json.loads((tmp_path / "run" / "training_arguments.json").read_text())
    assert (settings["steps_per_epoch"], settings["total_steps"]) == (2, 3 * (17 // 4))


def test_captions_of_similar_length_share_a_batch(small_pab, start, tmp_path):
    rows = training_rows(small_pab)
    words = {stable_number(row["image_id"]): len(row["caption"].split()) for row in rows}
    assert len(words) == len(rows)

    def spread(**changes) -> float:
        run = Run(parsed(flags(small_pab, start, tmp_path / "run", batch_size=2, **changes)))
        batches = [batch["image_ids"].tolist() for _ in range(4) for batch in run.loader]
        assert len(batches) == 4 * (len(rows) // 2)
        return sum(abs(words[one] - words[other]) for one, other in batches)

    assert spread(group_by_length=True) < 0.7 * spread()


@pytest.mark.parametrize("subset", ["first", "balanced", "diverse"])
def test_subsets(small_pab, start, tmp_path, subset):
    run = Run(parsed(flags(small_pab, start, tmp_path / "run", pairs=8, subset=subset, num_train_epochs=1)))
    run.train()
    seen = {run.pairs[row]["caption"] for row in range(len(run.pairs))}
    rows = training_rows(small_pab)
    if subset == "diverse":
        model, processor = TPASModel.from_pretrained(start).eval(), TPASProcessor.from_pretrained(start)
        embeds = encode_texts(model, processor, rows["caption"]).embeds
        expected = sorted(diverse_subset(embeds, 8, 42).tolist())
        assert json.loads((tmp_path / "run" / "subset.json").read_text()) == expected
        captions = rows.select(expected)["caption"]
    else:
        cut = {"validation_fraction": FRACTION}
        captions = load_pab(small_pab, "train", pairs=8, seed=42, subset=subset, **cut)["caption"]
        assert not (tmp_path / "run" / "subset.json").exists()
    assert seen == set(captions)


def test_a_diverse_subset_stays_when_the_run_goes_on(small_pab, start, tmp_path):
    run = tmp_path / "run"
    arguments = flags(small_pab, start, run, pairs=8, subset="diverse", num_train_epochs=1)
    train(arguments)
    chosen = [row for row in range(16) if row not in json.loads((run / "subset.json").read_text())][:8]
    (run / "subset.json").write_text(json.dumps(chosen))  # as if another machine had rounded otherwise
    train([*arguments, "--resume_from_checkpoint", "last"])
    assert json.loads((run / "subset.json").read_text()) == chosen


def test_several_seeds_are_summed_up(small_pab, start, tmp_path):
    run = tmp_path / "run"
    train(flags(small_pab, start, run, seeds=2, seed=7, evaluate_every=1, max_train_steps=2))
    summary = json.loads((run / "seeds.json").read_text())
    assert summary["seeds"] == [7, 8]
    values = []
    for seed in (7, 8):
        (evaluation,) = (e["evaluation"] for e in read_log(run / f"seed_{seed}") if "evaluation" in e)
        values.append(evaluation["embeddings"]["all"]["mAP"])
    figures = summary["stages"]["embeddings"]["mAP"]
    assert figures["values"] == values
    assert figures["mean"] == pytest.approx(sum(values) / 2)
    assert figures["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)


def test_seeds_go_on_where_they_were_stopped(small_pab, start, tmp_path):
    run = tmp_path / "run"
    arguments = flags(small_pab, start, run, seeds=2, evaluate_every=1, num_train_epochs=1)
    train(arguments)
    whole = (run / "seeds.json").read_text()
    shutil.rmtree(run / "seed_43")
    (run / "seeds.json").unlink()
    train([*arguments, "--resume_from_checkpoint", "last"])
    assert (run / "seeds.json").read_text() == whole


@pytest.mark.parametrize(
    ("existing", "message"),
    [("seed_8/last", "seed_8 holds a run already"), ("best", r"run holds a run already \(best\)")],
    ids=["of a later seed", "of a single run"],
)
def test_no_seed_is_run_where_there_is_a_run_already(small_pab, start, tmp_path, existing, message):
    run = tmp_path / "run"
    (run / existing).mkdir(parents=True)
    with pytest.raises(SystemExit, match=message):
        train(flags(small_pab, start, run, seeds=2, seed=7, evaluate_every=1, max_train_steps=1))
    assert not (run / "seed_7").exists()


# Raised within the compiler, of tensors that it looks at.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_encoders_train_alike(small_pab, start, tmp_path):
    for name, compiled in (("plain", False), ("compiled", True)):
        changes = {"torch_compile": compiled, "torch_compile_backend": "aot_eager", "max_train_steps": 2}
        train(flags(small_pab, start, tmp_path / name, **changes))
    plain, compiled = (read_log(tmp_path / name) for name in ("plain", "compiled"))
    for one, other in zip(plain, compiled, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_learning_rates_fall_from_layer_to_layer(tiny_config):
    vision, text = tiny_config.vision_config.to_dict(), tiny_config.text_config.to_dict()
    parts = {"vision_config": vision | {"depths": [2, 1]}, "text_config": text | {"num_hidden_layers": 2}}
    config = TPASConfig(**parts, num_cross_modal_layers=2, projection_dim=16)
    model = TPASModel(config)
    rates = LearningRates(1.0, multiplier=3.0, multiplied=r"^matching_head", layer_decay=0.5)
    settings = {"config": config, "weight_decay": 0.01, "betas": (0.9, 0.98), "epsilon": 1e-8}
    optimizer = build_optimizer(model, rates, new_parameters={"text_projection.bias"}, **settings)
    rate = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert len(rate) == len(list(model.parameters()))
    layers = "vision_model.encoder.layers"
    expected = {
        **{"image_projection.weight": 1.0, "temperature.value": 1.0, "vision_model.layernorm.weight": 1.0},
        **{"text_projection.bias": 3.0, "matching_head.dense.weight": 3.0},
        **{f"{layers}.1.blocks.0.mlp.fc1.weight": 0.5, f"{layers}.0.downsample.reduction.weight": 0.25},
        **{f"{layers}.0.blocks.1.mlp.fc1.weight": 0.25, f"{layers}.0.blocks.0.mlp.fc1.weight": 0.125},
        "vision_model.embeddings.patch_embeddings.projection.weight": 0.0625,
        "cross_modal_encoder.layers.1.output.weight": 0.5,
        "cross_modal_encoder.layers.0.output.weight": 0.25,
        "text_model.encoder.layer.1.output.dense.weight": 0.125,
        "text_model.encoder.layer.0.output.dense.weight": 0.0625,
        "text_model.embeddings.word_embeddings.weight": 0.03125,
    }
    assert {name: rate[name] for name in expected} == expected
    lines = describe_groups(optimizer)
    assert lines[0].startswith("learning rate 3 on ")
    assert "matching_head.dense.weight" in lines[0]
    assert len(lines) == len(set(rate.values()))


def test_hard_negatives_are_those_that_the_annotation_names(small_pab, start):
    rows = training_rows(small_pab)
    pairs = TrainingPairs(rows, small_pab, seed=1, hard_negatives=True)
    image, caption = pairs[0]["hard_negative"]
    assert caption == rows[0]["hard_c"]
    assert not ImageChops.difference(image, open_image(small_pab, rows[0]["hard_i"], "")).getbbox()

    itself = {"hard_i": rows[0]["image"], "hard_i_id": None}
    for fields in ({"hard_i": None}, {"hard_c": None}, {"hard_i_id": rows[0]["image_id"]}, itself):
        changed = rows.map(lambda row, fields=fields: row | fields)
        without = TrainingPairs(changed, small_pab, seed=1, hard_negatives=True)
        assert without[0]["hard_negative"] is None

    batch = PairCollator(TPASProcessor.from_pretrained(start))([without[0], pairs[1]])
    assert batch["has_hard_negative"].tolist() == [False, True]
    assert len(batch["pixel_values"]) == len(batch["input_ids"]) == 4
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][2])  # its place is filled
    assert not torch.equal(batch["pixel_values"][1], batch["pixel_values"][3])


def test_captions_that_read_the_same_get_one_id(small_pab, start):
    captions = ["A man, in red.", "a man in RED", "A man in blue."]
    rows = training_rows(small_pab).select(range(3))
    own = rows.map(lambda row, place: {"caption": captions[place], "hard_c": captions[-1]}, with_indices=True)
    view = {"second_view": lambda caption, rng: "red"}  # counts as the caption that it was made of
    items = list(
        map(TrainingPairs(own, small_pab, seed=1, hard_negatives=True, **view).__getitem__, range(3))
    )
    processor = TPASProcessor.from_pretrained(start)
    batch = PairCollator(processor, equal_texts_match=True)(items)
    first, second, third = batch["text_ids"].tolist()
    assert first == second != third
    assert batch["has_hard_negative"].tolist() == [True, True, False]  # "in blue" is no negative of itself
    plain = PairCollator(processor)(items)
    assert "text_ids" not in plain
    assert plain["has_hard_negative"].tolist() == [True, True, True]


def test_without_equal_captions_the_flag_changes_nothing(small_pab, start, tmp_path):
    for name, match in (("match", True), ("negatives", False)):
        train(flags(small_pab, start, tmp_path / name, equal_texts_match=match))
    one, other = (weights(tmp_path / name / "last") for name in ("match", "negatives"))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert read_log(tmp_path / "match") == read_log(tmp_path / "negatives")


def test_a_best_model_of_few_queries_is_warned_of(small_pab, start, tmp_path, caplog):
    run = Run(parsed(flags(small_pab, start, tmp_path / "run", evaluate_every=1, max_validation_pairs=2)))
    assert len(run.benchmark.captions) == 2
    # Wilson's interval of 1 in 2, by hand: (1 + z^2 / 2 -+ z sqrt(1 / 2 + z^2 / 4)) / (2 + z^2), z = 1.96.
    expected = "by 2 validation queries: a Recall@1 of 50 % of so few may as well be 9 or 91 %"
    assert expected in caplog.text
    assert "--max_validation_pairs, now 2), at least 50, or take last/ (--evaluate_every 0)" in caplog.text
    caplog.clear()
    warn_of_few_queries(50, run.arguments)
    assert not caplog.records


def test_a_broken_hard_negative_is_named_or_passed_over(small_pab, tmp_path):
    rows = training_rows(small_pab).map(lambda row: row | {"hard_i": "train/gone.jpg"})
    with pytest.raises(FileNotFoundError, match=f"{rows[0]['file']}, line {rows[0]['line']}: .*gone.jpg"):
        TrainingPairs(rows, small_pab, seed=1, hard_negatives=True)[0]
    item = TrainingPairs(rows, small_pab, seed=1, hard_negatives=True, skip_bad_images=True)[0]
    assert item["hard_negative"] is None
    assert "gone.jpg" in item["unreadable"][0]


def test_left_and_right_follow_a_mirrored_image(small_pab):
    rows = training_rows(small_pab).map(lambda row: row | {"caption": "On the left of a man."})
    items = {}
    for name, flip, swap in (("swapped", 1.0, True), ("kept", 1.0, False), ("plain", 0.0, True)):
        augmentation = Augmentation(32, crop_probability=0.0, flip_probability=flip, operations=0)
        pairs = TrainingPairs(rows, small_pab, seed=1, augmentation=augmentation, swap_left_right=swap)
        items[name] = pairs[0]
    assert items["swapped"]["caption"] == swap_left_right("On the left of a man.") == "On the right of a man."
    assert items["kept"]["caption"] == items["plain"]["caption"] == "On the left of a man."
    mirrored = ImageOps.mirror(items["plain"]["image"])
    assert not ImageChops.difference(items["swapped"]["image"], mirrored).getbbox()


def test_second_views_differ_by_epoch_and_follow_the_captions_in_a_batch(small_pab, start):
    rows, processor = training_rows(small_pab), TPASProcessor.from_pretrained(start)
    pairs = TrainingPairs(rows, small_pab, seed=1, second_view=lambda caption, rng: f"{rng.random()} a man")
    batch = PairCollator(processor)([pairs[0], pairs[1]])
    assert batch["input_ids"].shape[0] == 4
    captions = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert all(caption.endswith("a man") for caption in captions[2:])
    view = pairs[0]["second_view"]
    assert pairs[0]["second_view"] == view
    pairs.begin_epoch(1)
    assert pairs[0]["second_view"] != view


def test_a_model_of_another_architecture_is_refused(small_pab, tmp_path):
    size = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 9}
    config = BertConfig(num_hidden_layers=1, num_attention_heads=1, **size)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(SystemExit, match="bert: BertModel has no get_image_features and no get_text_"):
        train(flags(small_pab, tmp_path / "bert", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_processor_of_another_image_size_is_refused(small_pab, start, tmp_path):
    processor = TPASProcessor.from_pretrained(start)
    processor.image_size = 64
    processor.save_pretrained(start)
    with pytest.raises(SystemExit, match="takes images of 32 pixels, its processor makes them 64"):
        train(flags(small_pab, start, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_named(small_pab, start, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(sys, "path", [])
    message = "--report_to wandb needs a package that is not there: pip install wandb"
    with pytest.raises(SystemExit, match=message):
        train(flags(small_pab, start, tmp_path / "run", report_to="wandb"))
    assert not (tmp_path / "run").exists()


GIVEN = FineTuningArguments("root", "output", model_name_or_path="start")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cached_chunk_size": -1}, "--cached_chunk_size must be at least 0, got -1"),
        ({"checkpoint_every": -1}, "--checkpoint_every must be at least 0, got -1"),
        ({"evaluate_every": -1}, "--evaluate_every must be at least 0, got -1"),
        ({"max_grad_norm": -1.0}, "--max_grad_norm must be at least 0, got -1"),
        ({"warmup_ratio": 500.0}, "--warmup_ratio must be between 0 and 1, got 500"),
        ({"crop_probability": 1.5}, "--crop_probability must be between 0 and 1, got 1.5"),
        ({"ema_decay": 1.0}, "--ema_decay must be at least 0 and below 1, got 1.0"),
        ({"layer_decay": 0.0}, "--layer_decay must be above 0 and at most 1, got 0.0"),
        ({"max_train_steps": 3, "steps_as_pairs": 9}, "both say how many steps"),
        ({"source_group_size": 2, "group_by_length": True}, "both fill the batches"),
        ({"subset": "first"}, "--subset first needs --pairs"),
        ({"seeds": 2, "evaluate_every": 0}, "--seeds needs evaluations"),
        ({"early_stopping_patience": 1, "evaluate_every": 0}, "--early_stopping_patience needs evaluations"),
        ({"seeds": 2, "resume_from_checkpoint": "here"}, "--resume_from_checkpoint last is of each"),
        ({"masked_language_modelling_weight": 1.0, "masked_share": 0.0}, "nothing to predict"),
        ({"early_stopping_patience": 1, "average_last_epochs": 1}, "choose one"),
        ({"augmentation": False, "swap_left_right": True}, "--swap_left_right has no effect"),
        ({"augmentation": False, "crop_probability": 0.5}, "--crop_probability has no effect"),
        ({"lora_rank": -1}, "--lora_rank must be at least 0, got -1"),
        ({"lora_rank": 4, "lora_dropout": 1.5}, "--lora_dropout must be between 0 and 1, got 1.5"),
        ({"merge": True}, "--merge .* needs --lora_rank"),
        ({"lora_alpha": 8.0}, "--lora_alpha has no effect without --lora_rank"),
        ({"lora_targets": "q"}, "--lora_targets has no effect without --lora_rank"),
        ({"masked_share": 0.3}, "--masked_share has no effect without --masked_language_modelling_weight"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(GIVEN, **changes)
