"""Gradients of a large batch in the memory of a small one (GradCache, https://arxiv.org/abs/2101.06983).

A contrastive batch cannot be cut into independent parts as gradient accumulation does: every pair is compared
with every other. So the encoders run twice. First without a graph, chunk by chunk; the losses are then taken
of all embeddings and hidden states at once, and their gradients by these kept; then again chunk by chunk with
a graph, into which the kept gradients go. The cross-modal encoder runs once, over a chunk of pairs at a time.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from ..models.pair_processor import IMAGE_INPUTS
from .masked_language_modelling import NO_TARGET
from .objective import FineTuningObjective, several_processes


class ReplayedEncoding:
    """Rows encoded without a graph, and encoded again, with the same dropout, once their gradients are known.

    Attributes:
        embeds, states: what `encode` gave, as leaves that collect gradients; states may be None.
    """

    def __init__(
        self, encode: Callable[..., tuple[Tensor, Tensor | None]], inputs: dict[str, Tensor], chunk_size: int
    ):
        self.encode = encode
        chunks = zip(*(rows.split(chunk_size) for rows in inputs.values()), strict=True)
        self.chunks = [dict(zip(inputs, chunk, strict=True)) for chunk in chunks]
        self.chunk_size = chunk_size
        self.devices = list({rows.device for rows in inputs.values() if rows.is_cuda})
        self.random_states, outputs = [], []
        with torch.no_grad():
            for chunk in self.chunks:
                self.random_states.append(
                    (torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.devices))
                )
                outputs.append(encode(**chunk))
        self.embeds, self.states = (
            None if parts[0] is None else torch.cat(parts).requires_grad_()
            for parts in zip(*outputs, strict=True)
        )

    def backward(self) -> None:
        """Sends the gradients that the leaves collected through the encoder."""
        leaves = (leaf for leaf in (self.embeds, self.states) if leaf is not None)
        gradients = (leaf.grad.split(self.chunk_size) for leaf in leaves)
        for chunk, random_state, *gradient in zip(self.chunks, self.random_states, *gradients, strict=True):
            with torch.random.fork_rng(self.devices):
                torch.set_rng_state(random_state[0])
                for device, state in zip(self.devices, random_state[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
                outputs = [output for output in self.encode(**chunk) if output is not None]
            torch.autograd.backward(outputs, gradient)


def backward_in_chunks(
    objective: FineTuningObjective, batch: dict[str, Tensor], chunk_size: int, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Does `accelerator.backward(objective(**batch)["loss"])` with a graph of `chunk_size` rows at a time.

    Gradients are added to the parameters' own, this process's alone: see `average_gradients`. With the same
    random draws they are equal to the whole batch's up to rounding.

    Returns:
        What `objective(**batch)` returns, detached.
    """
    pairs_in_batch = len(batch["image_ids"])
    image_inputs = {name: rows for name, rows in batch.items() if name in IMAGE_INPUTS}
    input_ids, attention_mask = objective.equal_length(batch["input_ids"], batch["attention_mask"])
    with accelerator.autocast():
        images = ReplayedEncoding(objective.encode_images, image_inputs, chunk_size)
        text_inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        texts = ReplayedEncoding(objective.encode_texts, text_inputs, chunk_size)
        contrastive, pairs = objective.compare(
            images.embeds,
            texts.embeds,
            batch["image_ids"],
            batch.get("has_hard_negative"),
            batch.get("draw_seed"),
        )
        accelerator.backward(contrastive)
        losses = {"contrastive_loss": contrastive.detach()}

        if objective.matches:
            losses["matching_loss"] = torch.zeros_like(contrastive)
            *states, mask = objective.candidates(images.states, texts.states, attention_mask, pairs_in_batch)
            leaves = [rows.detach().requires_grad_() for rows in states]
            for chunk in pairs.split(chunk_size):
                loss = objective.match(*leaves, mask, chunk)
                accelerator.backward(loss)
                losses["matching_loss"] += loss.detach()
            torch.autograd.backward(states, [leaf.grad for leaf in leaves])

        if objective.masked_language_modelling is not None:
            losses["masked_language_modelling_loss"] = _masked_language_modelling_backward(
                objective, images.states, input_ids, attention_mask, pairs_in_batch, chunk_size, accelerator
            )
        images.backward()
        texts.backward()
    return losses | {"loss": objective.total(losses)}


def _masked_language_modelling_backward(
    objective: FineTuningObjective,
    image_states: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    pairs_in_batch: int,
    chunk_size: int,
    accelerator: Accelerator,
) -> Tensor:
    masked_ids, targets = objective.masked_language_modelling.mask(input_ids[:pairs_in_batch])
    columns = (image_states[:pairs_in_batch], masked_ids, targets, attention_mask[:pairs_in_batch])
    words = (targets != NO_TARGET).sum().clamp(min=1)
    losses = []
    for chunk in zip(*(rows.split(chunk_size) for rows in columns), strict=True):
        share = (chunk[2] != NO_TARGET).sum() / words
        loss = share * objective.masked_language_modelling(objective.network, *chunk)
        accelerator.backward(objective.masked_language_modelling_weight * loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def average_gradients(module: nn.Module) -> None:
    """Replaces every gradient by its mean over the processes, as DistributedDataParallel does."""
    if not several_processes():
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # nothing of this process's batch reached it
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
