"""The training objectives of X-VLM's fine-tuning, as functions of tensors."""

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


def gather_with_gradient(tensor):
    """Joins the tensors of all processes: (B, ...) to (processes * B, ...), in the order of the ranks.

    Every process must bring the same B. The gradient is summed over the processes, so that with the
    mean that DistributedDataParallel takes it equals the gradient of one process with the whole batch.
    (Upstream keeps only its own slice, which is smaller by the number of processes.)
    With one process the tensor is returned as it is.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    return _GatherWithGradient.apply(tensor)


def contrastive_loss(image_embeds, text_embeds, temperature, image_ids=None, label_smoothing=0.0):
    """The image-text contrastive loss (paper, Eq. 5-7), the mean of both directions.

    Args:
        image_embeds, text_embeds: (B, D) of unit norm; row i of one belongs to row i of the other.
        temperature: scalar tensor by which the cosines are divided.
        image_ids: (B,) integers; rows of equal id all count as right and share the positive mass.
            `None`: only the diagonal is right.
        label_smoothing: share of the positive mass, in [0, 1], that is spread evenly over all B.

    Returns:
        Scalar tensor. With all cosines equal it is log(B).
    """
    logits = image_embeds @ text_embeds.t() / temperature  # (B, B), image by text
    if image_ids is None:
        targets = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    else:
        same_image = (image_ids[:, None] == image_ids[None, :]).to(logits.dtype)
        targets = same_image / same_image.sum(dim=1, keepdim=True)
    image_to_text = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    text_to_image = F.cross_entropy(logits.t(), targets, label_smoothing=label_smoothing)
    return (image_to_text + text_to_image) / 2


@torch.no_grad()
def sample_hard_negatives(similarity, image_ids=None, generator=None):
    """Draws one hard negative for each text and each image of a batch of pairs.

    A negative is drawn in proportion to softmax(similarity) + 1e-5 (upstream's floor, which keeps
    every pair possible), never of the same image id. Image negatives are drawn first, as upstream does.

    Args:
        similarity: (B, B) cosine over temperature, image by text.
        image_ids: (B,) integers, or `None` if all images differ.
        generator: a `torch.Generator` on the device of `similarity`; `None`: the device's own.

    Returns:
        image_negatives (B,): for each text the index of another image.
        text_negatives (B,): for each image the index of another text.
        Where every image of the batch has the same id, an index of that id is returned;
        [`matching_labels`] leaves such a pair out of the loss.

    Raises:
        ValueError: for a batch of one, in which no negative exists.
    """
    batch = len(similarity)
    if batch < 2:
        raise ValueError(f"a negative needs at least 2 pairs in a batch, got {batch}: raise the batch size")
    if image_ids is None:
        image_ids = torch.arange(batch, device=similarity.device)
    same_image = image_ids[:, None] == image_ids[None, :]
    without_negative = same_image.all(dim=1, keepdim=True)

    def draw(scores):
        weights = scores.float().softmax(dim=1) + 1e-5
        weights = weights.masked_fill(same_image & ~without_negative, 0)
        return torch.multinomial(weights, num_samples=1, generator=generator).squeeze(1)

    image_negatives = draw(similarity.t())
    text_negatives = draw(similarity)
    return image_negatives, text_negatives


def matching_labels(image_negatives, text_negatives, image_ids=None):
    """Labels (3B,) of B positive pairs, B texts with a negative image and B images with a negative text.

    1 for a match, 0 for none, [`IGNORED_LABEL`] for a drawn "negative" that is of the same image id.
    """
    batch = len(image_negatives)
    if image_ids is None:
        image_ids = torch.arange(batch, device=image_negatives.device)
    drawn = torch.cat([image_ids[image_negatives], image_ids[text_negatives]])  # (2B,)
    negative = torch.where(drawn == image_ids.repeat(2), IGNORED_LABEL, 0)
    return torch.cat([torch.ones_like(image_negatives), negative])


def matching_loss(match_logits, labels):
    """The image-text matching loss (paper, Eq. 8).

    Args:
        match_logits: (P, 2), class 1 = the pair matches.
        labels: (P,) from [`matching_labels`].

    Returns:
        Scalar tensor, the mean over the pairs that are not ignored.
    """
    return F.cross_entropy(match_logits, labels, ignore_index=IGNORED_LABEL)
