import json
import logging
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import training_runs
from accelerate import debug_launcher
from torch.utils.data import DataLoader
from training_runs import parsed, read_log, train, weights

from tpas.data.pab import load_pab, retrieval_split
from tpas.evaluation.retrieval import evaluate
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.training.data import PairCollator, SourceGroupedSampler, TrainingPairs, place_of, stable_number
from tpas.training.fine_tuning import Run
from tpas.training.image_augmentation import Augmentation
from tpas.training.optimizer import LearningRates, build_optimizer

pytestmark = pytest.mark.usefixtures("fresh_accelerator", "without_dropout")
CUT = {"validation_fraction": 0.2, "max_validation_pairs": 1000}


# Two epochs of two steps.
flags = partial(training_runs.flags, num_train_epochs=2, batch_size=8, **CUT)


def steps_and_evaluations(output: Path) -> tuple[list[dict], list[dict]]:
    """The entries of the log, by what they are of."""
    entries = read_log(output)
    return [e for e in entries if "loss" in e], [e for e in entries if "evaluation" in e]


def test_captions_that_are_cut_are_counted_once_at_the_start(small_pab, start, tmp_path, caplog):
    processor = TPASProcessor.from_pretrained(start)
    processor.max_text_length = 5
    processor.save_pretrained(start)
    train(flags(small_pab, start, tmp_path / "run", max_train_steps=1, evaluate_every=0))
    (line,) = [record.getMessage() for record in caplog.records if "longer than" in record.getMessage()]
    pairs = load_pab(small_pab, "train", **CUT)
    assert f"{len(pairs)} of {len(pairs)} texts are longer than the 5 tokens" in line
    assert f"of the first, {place_of(pairs[0])}, '" in line


def test_a_run_leaves_models_log_arguments_and_tracker_files(small_pab, start, tmp_path):
    output = tmp_path / "run"
    train(flags(small_pab, start, output, report_to="tensorboard", num_workers=1))
    files = {"best", "last", "checkpoints", "tensorboard", "training_arguments.json", "training_log.jsonl"}
    assert {path.name for path in output.iterdir()} == files
    assert list((output / "tensorboard").rglob("events.out.tfevents.*"))
    arguments = json.loads((output / "training_arguments.json").read_text())
    assert arguments["learning_rate"] == 1e-3
    assert (arguments["num_processes"], arguments["total_steps"], arguments["new_parameters"]) == (1, 4, 0)
    assert arguments["training_pairs"] == len(load_pab(small_pab, "train", **CUT))

    steps, evaluations = steps_and_evaluations(output)
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    assert [entry["epoch"] for entry in steps] == [0.5, 1.0, 1.5, 2.0]
    assert [entry["learning_rate"] for entry in steps] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    for entry in steps:
        assert entry["loss"] == pytest.approx(entry["contrastive_loss"] + entry["matching_loss"], rel=1e-5)
        assert 0.001 <= entry["temperature"] <= 0.5
    assert [entry["step"] for entry in evaluations] == [2, 4]

    # What was logged is what the saved models do.
    recalls = [entry["evaluation"]["matching"]["all"]["recall@1"] for entry in evaluations]
    best = evaluations[recalls.index(max(recalls))]
    benchmark = retrieval_split(load_pab(small_pab, "validation", **CUT))
    for folder, logged in (("best", best), ("last", evaluations[-1])):
        model, processor = (kind.from_pretrained(output / folder) for kind in (TPASModel, TPASProcessor))
        assert evaluate(model, processor, benchmark, small_pab).stages == logged["evaluation"]


def test_the_loss_falls_on_pairs_seen_again_and_again(small_pab, start, tmp_path):
    output = tmp_path / "run"
    changes = {"pairs": 8, "max_train_steps": 40, "learning_rate": 5e-3, "augmentation": False}
    changes |= {"log_every": 20, "evaluate_every": 0, "warmup_ratio": 0.25, "max_grad_norm": 1.0}
    train(flags(small_pab, start, output, **changes))
    steps, evaluations = steps_and_evaluations(output)
    assert [entry["step"] for entry in steps] == [20, 40]
    assert steps[1]["contrastive_loss"] < 0.8 * steps[0]["contrastive_loss"]
    assert steps[1]["learning_rate"] == pytest.approx(5e-3 / 30)  # rises for 10 steps, falls to 0 in 30
    assert not evaluations
    assert not (output / "best").exists()


def test_the_same_seed_gives_the_same_model(small_pab, start, tmp_path):
    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        train(flags(small_pab, start, tmp_path / name, seed=seed, evaluate_every=0))
    first, second, third = (weights(tmp_path / name / "last") for name in ("first", "second", "third"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_steps_and_evaluations_are_counted_with_accumulation(small_pab, start, tmp_path):
    output = tmp_path / "run"
    changes = {"batch_size": 4, "gradient_accumulation_steps": 2, "max_train_steps": 5, "evaluate_every": 2}
    train(flags(small_pab, start, output, **changes))
    steps, evaluations = steps_and_evaluations(output)
    batches = len(load_pab(small_pab, "train", **CUT)) // 4
    per_epoch = -(-batches // 2)
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5]
    assert [entry["epoch"] for entry in steps] == pytest.approx([step / per_epoch for step in range(1, 6)])
    assert evaluations[-1]["step"] == 5  # the end is always evaluated


def test_a_step_of_fewer_batches_is_their_mean_as_well(small_pab, start, tmp_path):
    """With an epsilon that makes Adam's steps grow with the gradient, which they otherwise hardly do."""
    assert len(load_pab(small_pab, "train", **CUT)) // 8 == 2  # batches of an epoch
    changes = {"adam_epsilon": 1.0, "learning_rate": 1.0, "num_train_epochs": 1, "augmentation": False}
    for accumulated in (2, 5):
        output = tmp_path / str(accumulated)
        changes["gradient_accumulation_steps"] = accumulated
        train(flags(small_pab, start, output, evaluate_every=0, **changes))
        assert len(steps_and_evaluations(output)[0]) == 1
    whole, short, before = (weights(folder) for folder in (tmp_path / "2/last", tmp_path / "5/last", start))
    assert max((whole[name] - before[name]).abs().max() for name in before) > 1e-3
    for name, expected in whole.items():
        torch.testing.assert_close(short[name], expected, atol=1e-6, rtol=1e-5)


def test_random_weights_from_a_config(small_pab, start, tmp_path):
    (start / "model.safetensors").unlink()
    output = tmp_path / "run"
    train(flags(small_pab, None, output, config_name=start, max_train_steps=1))
    assert json.loads((output / "training_arguments.json").read_text())["new_parameters"] == 0
    assert weights(output / "last")


def test_two_processes_see_the_batch_that_one_of_twice_the_size_sees(small_pab, start, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    words = flags(small_pab, start, two, batch_size=4, negatives="global")
    debug_launcher(train, (words,), num_processes=2)
    train(flags(small_pab, start, one, batch_size=8, negatives="global"))

    arguments = json.loads((two / "training_arguments.json").read_text())
    assert (arguments["num_processes"], arguments["total_steps"]) == (2, 4)
    steps_of_one, _ = steps_and_evaluations(one)
    steps_of_two, evaluations = steps_and_evaluations(two)
    assert len(steps_of_two) == len(steps_of_one) == 4
    # The contrastive loss is over the gathered batch, and the hard negatives are drawn from it.
    for two_said, one_said in zip(steps_of_two, steps_of_one, strict=True):
        for name in ("contrastive_loss", "matching_loss"):
            assert two_said[name] == pytest.approx(one_said[name], abs=1e-4)
    assert [e["learning_rate"] for e in steps_of_two] == [e["learning_rate"] for e in steps_of_one]

    model, processor = (kind.from_pretrained(two / "last") for kind in (TPASModel, TPASProcessor))
    benchmark = retrieval_split(load_pab(small_pab, "validation", **CUT))
    assert evaluate(model, processor, benchmark, small_pab).stages == evaluations[-1]["evaluation"]


def test_learning_rate_and_decay_of_each_parameter(tiny_config):
    model = TPASModel(tiny_config)
    new = {"matching_head.classifier.weight", "matching_head.classifier.bias"}
    settings = {"config": tiny_config, "weight_decay": 0.01, "betas": (0.9, 0.98), "epsilon": 1e-8}
    optimizer = build_optimizer(model, LearningRates(3e-5, multiplier=2.0), new_parameters=new, **settings)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.98), 1e-8)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    layer_norms = (name for name, part in model.named_modules() if isinstance(part, torch.nn.LayerNorm))
    norms = {f"{name}.weight" for name in layer_norms}
    assert len(settings) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        rate = 6e-5 if name in new else 3e-5
        decay = 0.0 if "bias" in name or name in norms else 0.01
        assert settings[id(parameter)] == (rate, decay), name
    assert optimizer.param_groups[0]["lr"] == 3e-5  # the rate that is logged


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_parameters_that_the_checkpoint_lacks_are_new(small_pab, start, tmp_path, lora_rank):
    model = TPASModel.from_pretrained(start)
    state = {name: value for name, value in model.state_dict().items() if "matching_head" not in name}
    model.save_pretrained(start, state_dict=state)
    changes = {"lora_rank": lora_rank, "evaluate_every": 0, "masked_language_modelling_weight": 1.0}
    run = Run(parsed(flags(small_pab, start, tmp_path / "run", **changes)))
    groups = run.optimizer.param_groups
    rates = {name: group["initial_lr"] for group in groups for name in group["param_names"]}
    assert run.sizes["new_parameters"] == len(list(model.matching_head.parameters()))
    doubled = {name for name, rate in rates.items() if rate == 2e-3}
    assert doubled == {name for name in rates if "matching_head" in name or "masked_language" in name}
    assert set(rates.values()) == {1e-3, 2e-3}


def training_pairs(root: Path, **changes: object) -> TrainingPairs:
    settings = {"augmentation": Augmentation(32), "seed": 1, "skip_bad_images": False} | changes
    return TrainingPairs(load_pab(root, "train", **CUT), root, **settings)


def test_augmentation_depends_on_seed_epoch_and_row_only(small_pab):
    pairs = training_pairs(small_pab)
    first = [pairs[row]["image"].tobytes() for row in range(4)]
    assert [pairs[row]["image"].tobytes() for row in (3, 1, 0, 2)] == [first[row] for row in (3, 1, 0, 2)]
    pairs.begin_epoch(1)
    assert pairs[0]["image"].tobytes() != first[0]
    assert training_pairs(small_pab, seed=2)[0]["image"].tobytes() != first[0]
    assert training_pairs(small_pab, augmentation=None)[0]["image"].size == (48, 48)


def test_batches_are_the_same_with_and_without_workers(small_pab, start):
    pairs, collator = training_pairs(small_pab), PairCollator(TPASProcessor.from_pretrained(start))
    batches = [list(DataLoader(pairs, 5, num_workers=count, collate_fn=collator)) for count in (0, 2)]
    for here, there in zip(*batches, strict=True):
        assert here.keys() == there.keys()
        for name in ("pixel_values", "input_ids", "attention_mask", "image_ids"):
            assert torch.equal(here[name], there[name])


def test_stable_numbers_tell_ids_apart_and_never_change():
    numbers = [stable_number(str(number)) for number in range(1000)] + [stable_number("01")]
    assert len(set(numbers)) == 1001
    assert all(0 <= number < 2**63 for number in numbers)
    assert torch.tensor(numbers).dtype == torch.int64
    assert stable_number("0") == 4761921975702974394


@pytest.fixture
def broken_root(small_pab, tmp_path) -> Path:
    """A copy of the drawn PAB whose second training pair's image is cut off."""
    root = tmp_path / "broken"
    shutil.copytree(small_pab, root)
    image = root / load_pab(root, "train", **CUT)[1]["image"]
    image.write_bytes(image.read_bytes()[:200])
    return root


def place(root: Path, split: str, row: int) -> str:
    pair = load_pab(root, split, **CUT)[row]
    return f"{pair['file']}, line {pair['line']}: "


@pytest.mark.parametrize("message", ["broken image", "no such image file"])
def test_an_image_that_cannot_be_read_stops_the_run_and_is_named(broken_root, start, tmp_path, message):
    if message == "no such image file":
        (broken_root / load_pab(broken_root, "train", **CUT)[1]["image"]).unlink()
    with pytest.raises(SystemExit, match=message) as error:
        train(flags(broken_root, start, tmp_path / "run"))
    assert place(broken_root, "train", 1) in str(error.value)
    assert not (tmp_path / "run" / "last").exists()


def test_a_skipped_image_is_counted_and_named_once(broken_root, start, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(flags(broken_root, start, tmp_path / "run", on_bad_image="skip", num_train_epochs=3))
    named = [r for r in caplog.records if place(broken_root, "train", 1) in r.getMessage()]
    assert [record.levelname for record in named] == ["WARNING", "INFO"]  # when met, and at the end
    size = len(load_pab(broken_root, "train", **CUT))
    assert f"1 of {size} training pairs were skipped, unreadable" in caplog.text
    steps, _ = steps_and_evaluations(tmp_path / "run")
    assert len(steps) == 3 * (size // 8)


def test_the_next_readable_pair_stands_in_for_a_broken_one(broken_root):
    pairs = training_pairs(broken_root, skip_bad_images=True)
    item, following = pairs[1], pairs.dataset[2]
    assert (item["image_id"], item["caption"]) == (following["image_id"], following["caption"])
    assert item["image"].tobytes() == pairs[2]["image"].tobytes()
    (unreadable,) = item["unreadable"]
    assert unreadable.startswith(place(broken_root, "train", 1))


def test_a_run_without_any_readable_image_is_refused(broken_root, start, tmp_path):
    for image in broken_root.glob("train/**/*.jpg"):
        image.write_bytes(b"")
    pairs = training_pairs(broken_root, skip_bad_images=True)
    with pytest.raises(ValueError, match=f"none of the {len(pairs)} training images can be read"):
        pairs[3]
    with pytest.raises(SystemExit, match="validation images can be read"):
        train(flags(broken_root, start, tmp_path / "run", on_bad_image="skip"))
    assert not (tmp_path / "run").exists()


def test_a_broken_validation_image_is_found_before_the_first_step(small_pab, start, tmp_path, caplog):
    root = tmp_path / "root"
    shutil.copytree(small_pab, root)
    (root / load_pab(root, "validation", **CUT)[0]["image"]).unlink()
    where = place(root, "validation", 0)
    with pytest.raises(SystemExit, match="no such image file") as error:
        train(flags(root, start, tmp_path / "run"))
    assert str(error.value).startswith(f"tpas train: {where}")
    assert not (tmp_path / "run").exists()

    train(flags(root, start, tmp_path / "run", on_bad_image="skip", max_train_steps=1))
    assert f"left out of the validation split: {where}" in caplog.text


def test_images_in_linked_folders_are_read_unless_links_are_not_followed(small_pab, start, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(small_pab / "annotation", root / "annotation")
    (root / "train").symlink_to(small_pab / "train")
    short = {"max_train_steps": 1, "batch_size": 4}
    with pytest.raises(SystemExit, match="tpas train: annotation/.*, line .* is a link that leads out of"):
        train(flags(root, start, tmp_path / "refused", follow_links=False, **short))
    assert not (tmp_path / "refused").exists()
    with pytest.raises(SystemExit, match="is a link that leads out of"):  # of the pairs to train on
        train(flags(root, start, tmp_path / "refused", follow_links=False, evaluate_every=0, **short))
    train(flags(root, start, tmp_path / "run", **short))
    assert (tmp_path / "run" / "last").is_dir()


def test_a_folder_with_a_run_is_left_alone_unless_told(small_pab, start, tmp_path):
    output = tmp_path / "run"
    (output / "last").mkdir(parents=True)
    (output / "last" / "old").touch()
    (output / "notes.txt").write_text("mine")
    changes = {"max_train_steps": 1, "evaluate_every": 0}
    with pytest.raises(SystemExit, match="holds a run already .last.: .*--overwrite_output_dir"):
        train(flags(small_pab, start, output, **changes))
    with pytest.raises(SystemExit, match="do not fill one batch"):  # refused later, and still nothing is lost
        train(flags(small_pab, start, output, overwrite_output_dir=True, batch_size=1000, **changes))
    assert (output / "last" / "old").exists()

    train(flags(small_pab, start, output, overwrite_output_dir=True, **changes))
    assert not (output / "last" / "old").exists()
    assert (output / "last" / "model.safetensors").exists()
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, "--batch_size must be at least 2, got 1"),
        ({"batch_size": 1000}, "training pairs do not fill one batch of 1000"),
        ({"model_name_or_path": None}, "give either --model_name_or_path.*tpas convert"),
        ({"config_name": "folder"}, "give either --model_name_or_path"),
        ({"num_train_epochs": 0}, "--num_train_epochs must be at least 1, got 0"),
        ({"max_train_steps": 0}, "--max_train_steps must be at least 1, got 0"),
        ({"validation_fraction": 0}, "--evaluate_every 0"),
        ({"evaluation_shortlist": 0}, "the shortlist must be at least 1, got 0"),
        ({"multiplied_parameters": "nowhere"}, "'nowhere' fits none of the trained parameters"),
        ({"multiplied_parameters": "("}, "is no regular expression"),
        ({"fusion_weight": 1.5}, "--fusion_weight must be between 0 and 1, got 1.5"),
    ],
)
def test_impossible_runs_are_refused_and_write_nothing(small_pab, start, tmp_path, changes, message):
    with pytest.raises(SystemExit, match=message):
        train(flags(small_pab, start, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def grouped_order(videos, group_size, seed=0):
    sampler = SourceGroupedSampler(np.array(videos), group_size, torch.Generator().manual_seed(seed))
    assert len(sampler) == len(videos)
    return sampler


def test_grouped_rows_follow_each_other_and_each_row_comes_once():
    videos = np.repeat(np.arange(20), 4)[np.random.default_rng(0).permutation(80)]
    sampler = grouped_order(videos, 2)
    orders = [list(sampler), list(sampler)]
    for order in orders:
        assert sorted(order) == list(range(80))
        groups = videos[order].reshape(-1, 2)
        assert (groups[:, 0] == groups[:, 1]).all()
        assert len({tuple(group) for group in np.sort(np.reshape(order, (-1, 2)))}) == 40
        # A video's two groups are dealt apart, not laid side by side.
        assert (groups[:-1, 0] == groups[1:, 0]).sum() < 10
    assert orders[0] != orders[1]
    assert list(grouped_order(videos, 2)) == orders[0] != list(grouped_order(videos, 2, seed=1))


def test_a_video_smaller_than_the_group_loses_nothing():
    order = list(grouped_order([5, 3, 5, 5, 9], 2))
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert 1 in np.diff(sorted([order.index(row) for row in (0, 2, 3)]))


def test_training_with_grouped_sources_sees_both_of_a_person_in_a_batch(small_pab, start, tmp_path):
    changes = {"source_group_size": 2, "batch_size": 4, "evaluate_every": 0}
    run = Run(parsed(flags(small_pab, start, tmp_path / "run", **changes)))
    seen = [batch["image_ids"].tolist() for batch in run.loader]
    rows = load_pab(small_pab, "train", **CUT)
    source = {stable_number(row["image_id"]): row["source_id"].split("_")[0] for row in rows}
    assert len(seen) == len(rows) // 4
    assert all(len({source[image_id] for image_id in batch}) == 2 for batch in seen)
