"""Gradients of a large batch in the memory of a small one (GradCache, https://arxiv.org/abs/2101.06983).

A contrastive batch cannot be cut into independent parts as gradient accumulation does: every pair is compared
with every other. So the encoders run twice. First without a graph, chunk by chunk; the losses are then taken
of all embeddings and hidden states at once, and their gradients by these kept; then again chunk by chunk with
a graph, into which the kept gradients go. The cross-modal encoder runs once, over a chunk of pairs at a time.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from ..objectives import several_processes
from .masked_language_modelling import NO_TARGET
from .objective import FineTuningObjective


class ReplayedEncoding:
    """Rows encoded without a graph, and encoded again, with the same dropout, once their gradients are known.

    Attributes:
        embeds, states: what `encode` gave, as leaves that collect gradients; states may be None.
    """

    def __init__(self, encode: Callable[..., tuple[Tensor, Any]], chunk_size: int, **inputs: Tensor):
        self.encode = encode
        rows = zip(*(tensor.split(chunk_size) for tensor in inputs.values()), strict=True)
        self.chunks = [dict(zip(inputs, chunk, strict=True)) for chunk in rows]
        self.chunk_size = chunk_size
        self.devices = list({tensor.device for tensor in inputs.values() if tensor.is_cuda})
        self.random_states = []
        embeds, states = [], []
        with torch.no_grad():
            for chunk in self.chunks:
                self.random_states.append(
                    (torch.get_rng_state(), *map(torch.cuda.get_rng_state, self.devices))
                )
                embeds_of_chunk, states_of_chunk = encode(**chunk)
                embeds.append(embeds_of_chunk)
                states.append(states_of_chunk)
        self.embeds = torch.cat(embeds).requires_grad_()
        self.states: Any = None if states[0] is None else torch.cat(states).requires_grad_()

    def backward(self) -> None:
        """Sends the gradients that the leaves collected through the encoder."""
        leaves = (leaf for leaf in (self.embeds, self.states) if leaf is not None)
        gradients = (leaf.grad.split(self.chunk_size) for leaf in leaves if leaf.grad is not None)
        for chunk, random_state, *gradient in zip(self.chunks, self.random_states, *gradients, strict=True):
            with torch.random.fork_rng(self.devices):
                torch.set_rng_state(random_state[0])
                for device, state in zip(self.devices, random_state[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
                outputs = [output for output in self.encode(**chunk) if output is not None]
            torch.autograd.backward(outputs, gradient)


def backward_in_chunks(
    objective: FineTuningObjective,
    accelerator: Accelerator,
    chunk_size: int,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    image_ids: Tensor,
    text_ids: Tensor | None = None,
    has_hard_negative: Tensor | None = None,
    draw_seed: int | None = None,
    **image_inputs: Tensor,
) -> dict[str, Tensor]:
    """Does `accelerator.backward(objective(**batch)["loss"])` with a graph of `chunk_size` rows at a time.

    Gradients are added to the parameters' own, this process's alone: see `average_gradients`. With the same
    random draws they are equal to the whole batch's up to rounding.

    Args:
        input_ids, ..., image_inputs: see `FineTuningObjective.forward`.

    Returns:
        What `objective(**batch)` returns, detached.
    """
    batch = len(image_ids)
    input_ids, attention_mask = objective.equal_length(input_ids, attention_mask)
    with accelerator.autocast():
        images = ReplayedEncoding(objective.encode_images, chunk_size, **image_inputs)
        texts = ReplayedEncoding(
            objective.encode_texts, chunk_size, input_ids=input_ids, attention_mask=attention_mask
        )
        contrastive, pairs = objective.compare(
            images.embeds, texts.embeds, image_ids, has_hard_negative, draw_seed, text_ids
        )
        accelerator.backward(contrastive)
        losses = {"contrastive_loss": contrastive.detach()}

        if pairs is not None:
            *states, mask = objective.candidates(images.states, texts.states, attention_mask, batch)
            image_states, text_states = leaves = [rows.detach().requires_grad_() for rows in states]
            losses["matching_loss"] = torch.zeros_like(contrastive)
            for chunk in pairs.split(chunk_size):
                loss = objective.match(image_states, text_states, mask, chunk)
                accelerator.backward(loss)
                losses["matching_loss"] += loss.detach()
            torch.autograd.backward(states, [leaf.grad for leaf in leaves])

        if objective.masked_language_modelling is not None:
            head = objective.masked_language_modelling
            masked_ids, targets = head.mask(input_ids[:batch])
            columns = (images.states[:batch], masked_ids, targets, attention_mask[:batch])
            words = (targets != NO_TARGET).sum().clamp(min=1)
            parts = []
            for chunk in zip(*(rows.split(chunk_size) for rows in columns), strict=True):
                share = (chunk[2] != NO_TARGET).sum() / words
                loss = share * head(objective.network, *chunk)
                accelerator.backward(objective.masked_language_modelling_weight * loss)
                parts.append(loss.detach())
            losses["masked_language_modelling_loss"] = torch.stack(parts).sum()
        images.backward()
        texts.backward()
    return losses | {"loss": objective.total(losses)}


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
