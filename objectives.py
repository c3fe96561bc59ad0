"""The training objectives of X-VLM, as functions of tensors: what every training of the model minimises.

[`TPASModel.forward`] shows how they follow each other: [`contrastive_loss`] and [`draw_match_pairs`] of the
embeddings of all processes ([`gather_with_gradient`]), then [`matching_loss`] of the drawn pairs.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

IGNORED_LABEL = -100  # what torch.nn.functional.cross_entropy skips


class _GatherWithGradient(torch.autograd.Function):
    """All-gather along the first dimension whose gradient comes back from every process."""

    @staticmethod
    def forward(ctx, tensor):
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.cat(gathered)  # (processes * batch, ...)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def several_processes():
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_with_gradient(tensor):
    """Joins the tensors of all processes: (B, ...) to (processes * B, ...), in the order of the ranks.

    Every process must bring the same B. The gradient is summed over the processes, so that with the
    mean that DistributedDataParallel takes it equals the gradient of one process with the whole batch.
    (Upstream keeps only its own slice, which is smaller by the number of processes.)
    With one process the tensor is returned as it is.
    """
    return _GatherWithGradient.apply(tensor) if several_processes() else tensor


def in_full_precision(tensor):
    """In fp32 at least: a sharp temperature needs all digits of the cosines."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def similarities(image_embeds, text_embeds, temperature):
    """Cosines over temperature, image by text, in fp32 also under autocast: (I, D), (T, D) to (I, T)."""
    with torch.autocast(image_embeds.device.type, enabled=False):
        cosines = in_full_precision(image_embeds) @ in_full_precision(text_embeds).t()
        return cosines / in_full_precision(temperature)


def same_pairs(rows, image_ids=None, text_ids=None):
    """Which image of a batch of pairs belongs to which text: (B, B) bool, image by text, symmetric.

    Its own, and those of the same image id or text id: who reads the same is described by it as well.

    Args:
        rows: any tensor of B rows, on whose device the answer is.
        image_ids, text_ids: (B,) integers, or `None` if all differ.
    """
    same = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    for ids in (image_ids, text_ids):
        if ids is not None:
            same = same | (ids[:, None] == ids[None, :])
    return same


def contrastive_loss(
    image_embeds, text_embeds, temperature, image_ids=None, label_smoothing=0.0, text_ids=None
):
    """The image-text contrastive loss (paper, Eq. 5-7), the mean of both directions.

    Args:
        image_embeds, text_embeds: (B, D) of unit norm; row i of one belongs to row i of the other.
        temperature: scalar tensor by which the cosines are divided.
        image_ids, text_ids: (B,) integers; rows of equal image or equal text all count as right and share
            the positive mass. `None`: only the diagonal is right.
        label_smoothing: share of the positive mass, in [0, 1], that is spread evenly over all B.

    Returns:
        Scalar tensor. With all cosines equal it is log(B).
    """
    logits = similarities(image_embeds, text_embeds, temperature)  # (B, B)
    same = same_pairs(logits, image_ids, text_ids).to(logits.dtype)
    targets = same / same.sum(dim=1, keepdim=True)
    image_to_text = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    text_to_image = F.cross_entropy(logits.t(), targets, label_smoothing=label_smoothing)
    return (image_to_text + text_to_image) / 2


@torch.no_grad()
def sample_hard_negatives(similarity, image_ids=None, generator=None, text_ids=None):
    """Draws one hard negative for each text and each image of a batch of pairs.

    A negative is drawn in proportion to softmax(similarity) + 1e-5 (upstream's floor, which keeps
    every pair possible), never of the same image or text id. Image negatives are drawn first, as upstream.

    Args:
        similarity: (B, B) cosine over temperature, image by text.
        image_ids, text_ids: see [`same_pairs`].
        generator: a `torch.Generator` on the device of `similarity`; `None`: the device's own.

    Returns:
        image_negatives (B,): for each text the index of another image.
        text_negatives (B,): for each image the index of another text.
        Where every pair of the batch is the same image or text, an index of that kind is returned;
        [`match_pairs`] leaves such a pair out of the loss.

    Raises:
        ValueError: for a batch of one, in which no negative exists.
    """
    batch = len(similarity)
    if batch < 2:
        raise ValueError(f"a negative needs at least 2 pairs in a batch, got {batch}: raise the batch size")
    same = same_pairs(similarity, image_ids, text_ids)
    without_negative = same.all(dim=1, keepdim=True)

    def draw(scores):
        weights = scores.float().softmax(dim=1) + 1e-5
        weights = weights.masked_fill(same & ~without_negative, 0)
        return torch.multinomial(weights, num_samples=1, generator=generator).squeeze(1)

    image_negatives = draw(similarity.t())
    text_negatives = draw(similarity)
    return image_negatives, text_negatives


class MatchPairs(NamedTuple):
    """P image-text pairs for the cross-modal encoder.

    Attributes:
        images, texts: (P,) their rows among the images and texts that negatives are drawn from.
        labels: (P,) 1 for a match, 0 for none, [`IGNORED_LABEL`] for a pair that is left out of the loss.
    """

    images: torch.Tensor
    texts: torch.Tensor
    labels: torch.Tensor


def match_pairs(image_negatives, text_negatives, image_ids=None, own=slice(None), text_ids=None):
    """B positive pairs, then their B texts with a negative image, then their B images with a negative text.

    Args:
        image_negatives, text_negatives, image_ids, text_ids: see [`sample_hard_negatives`].
        own: the B of these rows that a process brought itself.

    Returns:
        [`MatchPairs`] of 3B pairs. A drawn "negative" of the same image or text is left out of the loss.
    """
    rows = torch.arange(len(image_negatives), device=image_negatives.device)
    same = same_pairs(rows, image_ids, text_ids)
    positives = rows[own]  # (B,)
    images = torch.cat([positives, image_negatives[own], positives])  # (3B,)
    texts = torch.cat([positives, positives, text_negatives[own]])  # (3B,)
    labels = torch.where(same[images, texts], IGNORED_LABEL, 0)
    labels[: len(positives)] = 1
    return MatchPairs(images, texts, labels)


@torch.no_grad()
def draw_match_pairs(
    image_embeds,
    text_embeds,
    temperature,
    image_ids=None,
    *,
    text_ids=None,
    hardness=1.0,
    from_all_processes=False,
    seed=None,
):
    """Draws the 3B pairs of this process's B images and texts that the matching loss is over.

    Args:
        image_embeds, text_embeds, temperature, image_ids, text_ids: see [`contrastive_loss`]; (W * B, D) of
            all W processes, in the order of the ranks.
        hardness: scales the similarities by which negatives are drawn; at 0 all other pairs are alike.
        from_all_processes: draw from the W * B rows, by `seed`, which is the same in every process: then the
            draw does not depend on how many processes share a batch. Otherwise from the process's own B, by
            torch's generator, as upstream.

    Returns:
        [`MatchPairs`], their rows among the W * B, or among the process's own B.
    """
    batch = len(image_embeds) // (dist.get_world_size() if several_processes() else 1)
    first = batch * (dist.get_rank() if several_processes() else 0)
    own, generator = slice(first, first + batch), None
    if from_all_processes:
        if seed is None:
            raise ValueError("to draw from all processes takes a seed that they share")
        generator = torch.Generator(image_embeds.device).manual_seed(seed)
    else:
        image_embeds, text_embeds = image_embeds[own], text_embeds[own]
        image_ids = None if image_ids is None else image_ids[own]
        text_ids = None if text_ids is None else text_ids[own]
        own = slice(batch)
    similarity = hardness * similarities(image_embeds, text_embeds, temperature)
    negatives = sample_hard_negatives(similarity, image_ids, generator, text_ids)
    return match_pairs(*negatives, image_ids, own, text_ids)


def pair_weights(labels, share=1.0):
    """What each pair's cross-entropy counts in the matching loss (P,): `share` in all, 0 where ignored.

    The mean is over the pairs of all processes, whose gradients are averaged.
    """
    counted = (labels != IGNORED_LABEL).float()
    mean_count = gather_with_gradient(counted.sum()[None]).mean()  # over the processes
    return share * counted / mean_count


def matching_loss(match_logits, labels, weights=None):
    """The image-text matching loss (paper, Eq. 8).

    Args:
        match_logits: (P, 2), class 1 = the pair matches.
        labels: (P,), see [`MatchPairs`].
        weights: (P,) from [`pair_weights`], or `None` for those of all `labels`.

    Returns:
        Scalar tensor, the weighted sum: by default the mean over the pairs that are not ignored.
    """
    weights = pair_weights(labels) if weights is None else weights
    losses = F.cross_entropy(
        in_full_precision(match_logits), labels, ignore_index=IGNORED_LABEL, reduction="none"
    )
    return (weights * losses).sum()
