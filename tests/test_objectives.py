"""The training objectives against hand calculations, a naive loop, counted draws and two real processes."""

import math
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.stats import chisquare
from torch.nn.parallel import DistributedDataParallel

from tpas.objectives import (
    IGNORED_LABEL,
    contrastive_loss,
    draw_match_pairs,
    gather_with_gradient,
    match_pairs,
    matching_loss,
    sample_hard_negatives,
)


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("batch", [2, 5, 16])
def test_equal_scores_cost_the_logarithm_of_the_batch(batch):
    same = unit(1, 8).expand(batch, 8)
    loss = contrastive_loss(same, same, torch.tensor(0.07))
    assert loss.item() == pytest.approx(math.log(batch), abs=1e-5)


def test_contrastive_loss_by_hand():
    images = torch.eye(2)
    texts = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    # Cosines, image by text: [[0.6, 1.0], [0.8, 0.0]]; at temperature 0.5 they double.
    image_to_text = [math.log(1 + math.exp(2.0 - 1.2)), math.log(1 + math.exp(1.6 - 0.0))]
    text_to_image = [math.log(1 + math.exp(1.6 - 1.2)), math.log(1 + math.exp(2.0 - 0.0))]
    expected = (sum(image_to_text) / 2 + sum(text_to_image) / 2) / 2
    assert contrastive_loss(images, texts, torch.tensor(0.5)).item() == pytest.approx(expected, abs=1e-6)


def test_contrastive_loss_is_zero_where_only_the_own_text_is_near():
    images = torch.eye(3)
    assert contrastive_loss(images, images, torch.tensor(0.01)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("texts_of", [None, [1, 1, 2, 4, 4]], ids=["images", "images or texts"])
def test_equal_ids_share_the_positive_mass(texts_of):
    images, texts, ids = unit(5, 6), unit(5, 6), [7, 3, 7, 7, 3]
    expected = 0.0
    for row in range(5):
        mates = [
            column
            for column in range(5)
            if ids[column] == ids[row] or (texts_of and texts_of[column] == texts_of[row])
        ]
        for one, others in ((images[row], texts), (texts[row], images)):
            scores = [float(one @ other) / 0.1 for other in others]
            log_sum = math.log(sum(math.exp(score) for score in scores))
            expected -= sum(scores[mate] - log_sum for mate in mates) / len(mates) / 10
    text_ids = None if texts_of is None else torch.tensor(texts_of)
    loss = contrastive_loss(images, texts, torch.tensor(0.1), torch.tensor(ids), text_ids=text_ids)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_different_ids_are_no_ids():
    images, texts = unit(4, 6), unit(4, 6)
    temperature = torch.tensor(0.07)
    with_ids = contrastive_loss(images, texts, temperature, torch.tensor([4, 1, 9, 2]))
    assert with_ids.item() == contrastive_loss(images, texts, temperature).item()


def draw_often(similarity, image_ids, draws=4000, text_ids=None):
    """How often each (row, column) is drawn: image negatives of texts, text negatives of images."""
    images, texts = torch.zeros_like(similarity), torch.zeros_like(similarity)
    rows = torch.arange(len(similarity))
    for _ in range(draws):
        image_negatives, text_negatives = sample_hard_negatives(similarity, image_ids, text_ids=text_ids)
        images[rows, image_negatives] += 1
        texts[rows, text_negatives] += 1
    return images, texts


def test_negatives_are_drawn_in_proportion_and_never_of_the_same_image_or_text():
    similarity = torch.randn(5, 5) * 1.5
    ids, texts = [0, 1, 0, 2, 3], [6, 7, 8, 8, 9]
    draws = 4000
    drawn = draw_often(similarity, torch.tensor(ids), draws, torch.tensor(texts))
    for counts, scores in zip(drawn, (similarity.t(), similarity), strict=True):
        for row in range(5):
            others = [column for column in range(5) if ids[column] != ids[row]]
            allowed = [column for column in others if texts[column] != texts[row]]
            assert counts[row, allowed].sum() == draws
            weights = [math.exp(scores[row, column]) for column in range(5)]
            weights = [weights[column] / sum(weights) + 1e-5 for column in allowed]
            expected = [draws * weight / sum(weights) for weight in weights]
            assert chisquare(counts[row, allowed], expected).pvalue > 1e-3


def test_every_other_pair_stays_possible():
    # All but the own pair have a softmax of exactly zero: the floor of 1e-5 alone decides, evenly.
    images, texts = draw_often(torch.eye(3) * 1000, None, draws=1000)
    for counts in (images, texts):
        assert torch.equal(counts.diagonal(), torch.zeros(3))
        assert (counts + torch.eye(3) * 500 > 400).all()


@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_without_a_second_pair_is_refused(batch):
    with pytest.raises(ValueError, match=f"at least 2 pairs in a batch, got {batch}"):
        sample_hard_negatives(torch.zeros(batch, batch))


def test_labels_by_hand():
    negatives = torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])
    pairs = match_pairs(*negatives)
    assert pairs.images.tolist() == [0, 1, 2, 1, 2, 0, 0, 1, 2]
    assert pairs.texts.tolist() == [0, 1, 2, 0, 1, 2, 2, 0, 1]
    assert pairs.labels.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    # Ids 5, 5, 6: text 0 with image 1 and image 1 with text 0 are no negatives after all.
    pairs = match_pairs(*negatives, torch.tensor([5, 5, 6]))
    assert pairs.labels.tolist() == [1, 1, 1, IGNORED_LABEL, 0, 0, 0, IGNORED_LABEL, 0]
    texts = match_pairs(*negatives, text_ids=torch.tensor([5, 5, 6]))
    assert torch.equal(texts.labels, pairs.labels)
    own = match_pairs(*negatives, own=slice(1, 3))
    assert [column.tolist() for column in own] == [[1, 2, 2, 0, 1, 2], [1, 2, 1, 2, 0, 1], [1, 1, 0, 0, 0, 0]]


def test_a_batch_of_one_image_trains_on_its_positives_alone():
    ids = torch.tensor([8, 8, 8])
    labels = draw_match_pairs(unit(3, 8), unit(3, 8), torch.tensor(0.07), ids).labels
    assert labels.tolist() == [1] * 3 + [IGNORED_LABEL] * 6
    logits = torch.randn(9, 2)
    of_positives = F.cross_entropy(logits[:3], torch.ones(3, dtype=torch.long))
    assert matching_loss(logits, labels).item() == pytest.approx(of_positives.item())


def test_negatives_of_hardness_0_are_drawn_evenly():
    same = unit(3, 8).repeat_interleave(2, dim=0)  # of six images, each has one twin
    twin = torch.tensor([1, 0, 3, 2, 5, 4])
    for hardness, least, most in ((1.0, 0.99, 1.0), (0.0, 0.1, 0.3)):
        drawn = [draw_match_pairs(same, same, torch.tensor(0.001), hardness=hardness) for _ in range(200)]
        twins = torch.stack([pairs.images[6:12] == twin for pairs in drawn]).float().mean()
        assert least <= twins <= most


def test_a_draw_from_all_processes_follows_its_seed_alone():
    embeds = unit(8, 4), unit(8, 4), torch.tensor(0.5)
    settings = [{"from_all_processes": True, "seed": seed} for seed in (1, 1, 2)]
    first, again, other = (draw_match_pairs(*embeds, **setting) for setting in settings)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.texts, again.texts)
    assert not (torch.equal(first.images, other.images) and torch.equal(first.texts, other.texts))
    with pytest.raises(ValueError, match="takes a seed"):
        draw_match_pairs(*embeds, from_all_processes=True)


def test_the_losses_are_in_full_precision_also_under_autocast():
    images, texts, temperature = unit(6, 8), unit(6, 8), torch.tensor(0.01)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(images, texts, temperature)
    assert torch.equal(loss, contrastive_loss(images, texts, temperature))


def test_matching_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0], [1.0, 0.0], [3.0, 3.0]])
    # Right with margin 2, right with margin 1, undecided.
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(2)) / 3
    assert matching_loss(logits, torch.tensor([1, 0, 1])).item() == pytest.approx(expected, abs=1e-6)
    ignored = matching_loss(logits, torch.tensor([1, 0, IGNORED_LABEL])).item()
    assert ignored == pytest.approx((3 * expected - math.log(2)) / 2, abs=1e-6)


def test_one_process_gathers_nothing():
    tensor = torch.randn(3, 2)
    assert gather_with_gradient(tensor) is tensor


class Projection(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, temperature: torch.Tensor):
        super().__init__()
        self.weight, self.temperature = (torch.nn.Parameter(part.clone()) for part in (weight, temperature))

    def forward(self, images, texts):
        return F.normalize(images @ self.weight), F.normalize(texts @ self.weight)


def train_share(folder: Path, rank: int) -> None:
    """What one of two processes does: a step on its half of the batch, and writes what it gets."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    batch = torch.load(folder / "batch.pt", weights_only=True)
    model = DistributedDataParallel(Projection(batch["weight"], batch["temperature"]))
    half = slice(4 * rank, 4 * rank + 4)
    images, texts = model(batch["images"][half], batch["texts"][half])
    ids, text_ids = (gather_with_gradient(batch[name][half]) for name in ("ids", "text_ids"))
    both = map(gather_with_gradient, (images, texts))
    loss = contrastive_loss(*both, model.module.temperature, ids, text_ids=text_ids)
    loss.backward()
    # Of its four pairs the second process leaves two out, the first none.
    ignored = IGNORED_LABEL
    labels = torch.tensor([1, 0, 1, 0]) if rank == 0 else torch.tensor([1, ignored, ignored, 0])
    logits = batch["images"][half, :2].clone().requires_grad_()
    matching_loss(logits, labels).backward()
    not_contiguous = gather_with_gradient(torch.arange(6).view(2, 3).t() + 10 * rank)
    saved = {"loss": loss.detach(), "ids": ids, "not_contiguous": not_contiguous, "logits": logits.grad}
    saved |= {name: parameter.grad for name, parameter in model.module.named_parameters()}
    torch.save(saved, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # torch 2.13 now and then aborts in its own threads while the interpreter ends


def test_two_processes_train_as_one(tmp_path):
    batch = {
        "images": torch.randn(8, 6),
        "texts": torch.randn(8, 6),
        "ids": torch.tensor([0, 1, 2, 3, 0, 4, 5, 3]),  # two images are seen by both processes
        "text_ids": torch.tensor([0, 1, 2, 3, 4, 1, 6, 7]),  # and a text
        "weight": torch.randn(6, 5),
        "temperature": torch.tensor(0.2),
    }
    torch.save(batch, tmp_path / "batch.pt")
    fork = multiprocessing.get_context("fork")  # spares the second import of everything
    processes = [fork.Process(target=train_share, args=(tmp_path, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=600)
    assert [process.exitcode for process in processes] == [0, 0]

    weight, temperature = batch["weight"].requires_grad_(), batch["temperature"].requires_grad_()
    images, texts = (F.normalize(batch[name] @ weight) for name in ("images", "texts"))
    loss = contrastive_loss(images, texts, temperature, batch["ids"], text_ids=batch["text_ids"])
    loss.backward()
    for rank in range(2):
        saved = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert torch.equal(saved["ids"], batch["ids"])
        assert saved["not_contiguous"].tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]
        torch.testing.assert_close(saved["loss"], loss.detach(), atol=1e-6, rtol=0)
        torch.testing.assert_close(saved["weight"], weight.grad, atol=1e-6, rtol=0)
        # The temperature is a leaf of the whole batch's loss in every process: the mean is the gradient, too.
        torch.testing.assert_close(saved["temperature"], temperature.grad, atol=1e-5, rtol=0)

    # The matching loss is the mean over the six pairs of both, however they are spread.
    logits = batch["images"][:, :2].clone().requires_grad_()
    labels = torch.tensor([1, 0, 1, 0, 1, IGNORED_LABEL, IGNORED_LABEL, 0])
    F.cross_entropy(logits, labels).backward()
    saved = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)["logits"] for rank in range(2)]
    torch.testing.assert_close(torch.cat(saved) / 2, logits.grad, atol=1e-6, rtol=0)
