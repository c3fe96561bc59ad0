"""The fine-tuning objective against the model's own losses, hand-made sums, and real processes.

In double precision, so that what is equal differs from what is nearly so.
"""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator, debug_launcher

from tpas.modeling_tpas import TPASModel
from tpas.objectives import IGNORED_LABEL, contrastive_loss
from tpas.training.gradient_cache import average_gradients, backward_in_chunks
from tpas.training.masked_language_modelling import NO_TARGET, MaskedLanguageModelling
from tpas.training.objective import FineTuningObjective

pytestmark = pytest.mark.usefixtures("fresh_accelerator", "without_dropout")
PAIRS = 6


def batch_of(
    views: int = 1, hard_negatives: bool = False, text_ids: list[int] | None = None
) -> dict[str, torch.Tensor]:
    """A batch as `PairCollator` makes it; the captions end in padding, pairs 1 and 4 show one image."""
    generator = torch.Generator().manual_seed(3)
    images, texts = PAIRS * (1 + hard_negatives), PAIRS * (views + hard_negatives)
    lengths = torch.randint(4, 12, (texts, 1), generator=generator)
    batch = {
        "pixel_values": torch.randn(images, 3, 32, 32, generator=generator, dtype=torch.float64),
        "input_ids": torch.randint(5, 64, (texts, 12), generator=generator),
        "attention_mask": (torch.arange(12) < lengths).long(),
        "image_ids": torch.tensor([3, 7, 5, 9, 7, 2]),
    }
    if hard_negatives:
        batch["has_hard_negative"] = torch.tensor([True, False, True, True, True, True])
    return batch if text_ids is None else batch | {"text_ids": torch.tensor(text_ids)}


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_by_default_it_is_the_loss_of_the_model(tiny_config):
    model, batch = TPASModel(tiny_config).double(), batch_of()
    torch.manual_seed(1)
    expected = model(**batch, return_loss=True)
    torch.manual_seed(1)
    losses = FineTuningObjective(model)(**batch)
    for name in ("loss", "contrastive_loss", "matching_loss"):
        torch.testing.assert_close(losses[name], expected[name], atol=1e-6, rtol=0)
    losses["loss"].backward()
    ours = gradients(model)
    model.zero_grad()
    expected.loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=0)


def test_global_negatives_depend_on_the_seed_alone(tiny_config):
    model, batch = TPASModel(tiny_config).double(), batch_of()
    objective = FineTuningObjective(model, global_negatives=True)
    seen = [{objective(**batch, draw_seed=seed)["matching_loss"].item() for _ in range(3)} for seed in (1, 2)]
    assert len(seen[0]) == len(seen[1]) == 1
    assert seen[0] != seen[1]


def test_a_second_view_costs_its_weight_in_both_losses(tiny_config):
    """Of two equal views the second one's contrastive loss is the first one's, its negatives other draws."""
    model, one = TPASModel(tiny_config).double(), batch_of()
    both = {name: torch.cat([one[name]] * 2) for name in ("input_ids", "attention_mask")}
    once = FineTuningObjective(model)(**one)
    twice = FineTuningObjective(model, second_view_weight=0.8)(**one | both)
    torch.testing.assert_close(twice["contrastive_loss"], 1.8 * once["contrastive_loss"])

    # Pairs and negatives are the same for each view when all images are, and all captions.
    for name in ("pixel_values", "input_ids", "attention_mask"):
        one[name] = one[name][:1].repeat(PAIRS, *[1] * (one[name].dim() - 1))
    both = {name: torch.cat([one[name]] * 2) for name in ("input_ids", "attention_mask")}
    once = FineTuningObjective(model)(**one)
    twice = FineTuningObjective(model, second_view_weight=0.8)(**one | both)
    torch.testing.assert_close(twice["matching_loss"], 1.8 * once["matching_loss"])


def test_hard_negatives_are_two_more_negatives_of_each_pair_that_has_one(tiny_config):
    model = TPASModel(tiny_config).double()
    objective, batch = FineTuningObjective(model), batch_of(hard_negatives=True)
    image, image_states = objective.encode_images(pixel_values=batch["pixel_values"])
    text, text_states = objective.encode_texts(batch["input_ids"], batch["attention_mask"])
    contrastive, pairs = objective.compare(image, text, batch["image_ids"], batch["has_hard_negative"], None)
    # The hard negatives take no part in the contrastive loss.
    expected = contrastive_loss(image[:PAIRS], text[:PAIRS], model.temperature(), batch["image_ids"])
    torch.testing.assert_close(contrastive, expected)

    rows = list(zip(pairs.images.tolist(), pairs.texts.tolist(), pairs.labels.tolist(), strict=True))
    assert rows[:PAIRS] == [(row, row, 1) for row in range(PAIRS)]
    drawn = rows[PAIRS : 3 * PAIRS]
    assert all(label == 0 and image < PAIRS and text < PAIRS for image, text, label in drawn)
    assert [text for _, text, _ in drawn[:PAIRS]] == list(range(PAIRS))
    assert [image for image, _, _ in drawn[PAIRS:]] == list(range(PAIRS))
    labels = [0, IGNORED_LABEL, 0, 0, 0, 0]  # pair 1 has none
    assert rows[3 * PAIRS : 4 * PAIRS] == [(PAIRS + row, row, labels[row]) for row in range(PAIRS)]
    assert rows[4 * PAIRS :] == [(row, PAIRS + row, labels[row]) for row in range(PAIRS)]
    counted = torch.ones(5 * PAIRS)
    counted[[3 * PAIRS + 1, 4 * PAIRS + 1]] = 0
    torch.testing.assert_close(pairs.weights, counted / counted.sum())

    mask = batch["attention_mask"]
    logits = model.match(image_states[pairs.images], text_states[pairs.texts], mask[pairs.texts])
    mean = F.cross_entropy(logits[counted > 0], pairs.labels[counted > 0])
    torch.testing.assert_close(objective.match(image_states, text_states, mask, pairs), mean)


def test_equal_texts_are_right_for_each_other_s_images_in_either_view(tiny_config):
    """As equal images are: ids of texts that say the same as ids of images would give the same losses."""
    model = TPASModel(tiny_config).double().eval()
    objective = FineTuningObjective(model, global_negatives=True, second_view_weight=0.8)
    texts = [3, 7, 5, 9, 7, 2]
    by_images = objective(**batch_of(views=2), draw_seed=11)
    batch = batch_of(views=2, text_ids=texts) | {"image_ids": torch.arange(PAIRS)}
    by_texts = objective(**batch, draw_seed=11)
    assert torch.equal(by_texts["loss"], by_images["loss"])
    different = objective(**batch | {"text_ids": torch.arange(PAIRS)}, draw_seed=11)
    assert torch.equal(different["loss"], objective(**batch | {"text_ids": None}, draw_seed=11)["loss"])
    assert different["contrastive_loss"] != by_texts["contrastive_loss"]


def test_label_smoothing_by_hand():
    embeds, texts = F.normalize(torch.randn(2, 4, 8), dim=2)
    temperature = torch.tensor(0.1)
    logits = embeds @ texts.t() / temperature
    targets = 0.8 * torch.eye(4) + 0.2 / 4
    rows = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    columns = -(targets * logits.t().log_softmax(dim=1)).sum(dim=1).mean()
    loss = contrastive_loss(embeds, texts, temperature, label_smoothing=0.2)
    torch.testing.assert_close(loss, (rows + columns) / 2)


def test_words_are_masked_replaced_and_kept_by_their_shares():
    modelling = MaskedLanguageModelling(8, 4, list(range(5, 64)), 0.25, random_share=0.1, kept_share=0.1)
    ids = torch.randint(0, 64, (200, 100))
    masked, targets = modelling.mask(ids)
    predicted = targets != NO_TARGET
    assert not predicted[ids < 5].any()
    assert torch.equal(targets[predicted], ids[predicted])
    assert torch.equal(masked[~predicted], ids[~predicted])
    assert 0.24 < predicted.sum() / (ids >= 5).sum() < 0.26
    outcome = masked[predicted]
    assert 0.78 < (outcome == 4).float().mean() < 0.82
    kept = (outcome == ids[predicted]).float().mean()  # by chance, one in 59 of the random ones too
    assert 0.08 < kept < 0.12
    others = outcome[(outcome != 4) & (outcome != ids[predicted])]
    assert 0.08 < len(others) / len(outcome) < 0.12
    assert others.min() >= 5


def objective_with_everything(tiny_config) -> FineTuningObjective:
    torch.manual_seed(5)
    words = MaskedLanguageModelling(32, 4, list(range(5, 64)), 0.5)
    weights = {"second_view_weight": 0.8, "masked_language_modelling_weight": 0.7, "label_smoothing": 0.1}
    return FineTuningObjective(TPASModel(tiny_config), masked_language_modelling=words, **weights).double()


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_cached_gradients_are_those_of_the_whole_batch(tiny_config, chunk_size):
    accelerator = Accelerator()
    objective, texts = objective_with_everything(tiny_config), [4, 1, 6, 4, 2, 6]
    batch = batch_of(views=2, hard_negatives=True, text_ids=texts)
    torch.manual_seed(7)
    expected = objective(**batch)
    expected["loss"].backward()
    whole = gradients(objective)
    objective.zero_grad()
    torch.manual_seed(7)
    losses = backward_in_chunks(objective, accelerator, chunk_size, **batch)
    for name in objective.loss_names:
        torch.testing.assert_close(losses[name], expected[name], atol=1e-6, rtol=0)
    cached = gradients(objective)
    assert cached.keys() == whole.keys()
    for name, gradient in whole.items():
        where = partial("{}: {}".format, name)
        torch.testing.assert_close(cached[name], gradient, atol=1e-6, rtol=0, msg=where)


def test_cached_gradients_replay_dropout(tiny_config):
    """What is encoded twice is encoded alike: the gradient is that of the loss that was computed."""
    tiny_config.vision_config.drop_path_rate = 0.5
    tiny_config.text_config.hidden_dropout_prob = tiny_config.text_config.attention_probs_dropout_prob = 0.5
    objective, batch = FineTuningObjective(TPASModel(tiny_config)).double().train(), batch_of()
    encoded = []
    for name in ("encode_images", "encode_texts"):
        encode = getattr(objective, name)
        objective.__dict__[name] = lambda e=encode, **inputs: encoded.append(e(**inputs)) or encoded[-1]
    backward_in_chunks(objective, Accelerator(), 3, **batch)
    assert len(encoded) == 8  # two chunks of images and two of captions, twice
    for first, second in zip(encoded[:4], encoded[4:], strict=True):
        assert not first[0].requires_grad
        assert second[0].requires_grad
        for once, again in zip(first, second, strict=True):
            torch.testing.assert_close(once, again)


def write_gradients(folder: Path) -> None:
    """What one of two processes does: both ways to the gradient of its batch; the first one writes."""
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    model = TPASModel.from_pretrained(folder / "model")
    assert model.dtype == torch.float64
    objective = FineTuningObjective(model, global_negatives=True, second_view_weight=0.8)
    prepared = accelerator.prepare(objective)
    batch = torch.load(folder / f"batch{accelerator.process_index}.pt", weights_only=True)
    for chunk_size in (0, 2):
        if chunk_size:
            losses = backward_in_chunks(objective, accelerator, chunk_size, **batch)
            average_gradients(objective)
        else:
            losses = prepared(**batch)
            accelerator.backward(losses["loss"])
        losses = {name: accelerator.reduce(loss.detach(), "mean") for name, loss in losses.items()}
        if accelerator.is_main_process:
            content = {"losses": losses, "gradients": gradients(objective)}
            torch.save(content, folder / f"result{chunk_size}.pt")
        prepared.zero_grad()
    accelerator.wait_for_everyone()
    os._exit(0)  # once in some runs gloo's threads abort a process that is torn down


def test_two_processes_have_the_gradient_of_one_with_both_batches(tiny_config, tmp_path, fresh_accelerator):
    """Whole and in chunks, with negatives of all: both losses, every gradient, captions of other lengths."""
    model = TPASModel(tiny_config).double().eval()
    model.save_pretrained(tmp_path / "model")
    batch = batch_of(views=2, text_ids=[4, 1, 6, 4, 2, 9])  # a pair of either process reads the same
    objective = FineTuningObjective(model, global_negatives=True, second_view_weight=0.8)
    expected = objective(**batch, draw_seed=11)
    expected["loss"].backward()

    half = PAIRS // 2
    for rank in range(2):
        own = torch.arange(half) + rank * half
        of_views = torch.cat([own, own + PAIRS])
        part = {name: batch[name][own] for name in ("pixel_values", "image_ids", "text_ids")}
        length = int(batch["attention_mask"][of_views].sum(dim=1).max())
        for name in ("input_ids", "attention_mask"):
            part[name] = batch[name][of_views, :length]
        torch.save(part | {"draw_seed": 11}, tmp_path / f"batch{rank}.pt")
    fresh_accelerator()
    debug_launcher(write_gradients, (tmp_path,), num_processes=2)
    for chunk_size in (0, 2):
        result = torch.load(tmp_path / f"result{chunk_size}.pt", weights_only=True)
        for name, loss in expected.items():
            torch.testing.assert_close(result["losses"][name], loss.detach(), atol=1e-6, rtol=0)
        for name, parameter in objective.named_parameters():
            where = partial("{} in chunks of {}: {}".format, name, chunk_size)
            gradient = result["gradients"][name]
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=0, msg=where)
