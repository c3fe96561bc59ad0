"""A training step of this code against the straightforward upstream schedule, and the memory of each option.

    python benchmarks/training_step.py                # full size, random weights, minutes on two cores
    python benchmarks/training_step.py --quick        # a tiny model: only shows that the script runs

Time: both steps start from the same weights and do forward, backward and AdamW on the same pairs of drawn
noise and captions of 40 to 60 words, in turn, and the median of the ratios is reported. The upstream schedule
pads every caption to 70 tokens, writes its attention out, picks hard negatives in a loop over the batch, and
runs the cross-modal encoder once for the positive and once for the negative pairs.

Memory: each option takes two steps in a fresh process; reported is the peak resident size beyond that of
the imports, with weights, gradients and AdamW's moments in it.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import measuring
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from tpas.modeling_tpas import TPASModel
from tpas.models.lora import add_lora
from tpas.objectives import contrastive_loss
from tpas.training.gradient_cache import backward_in_chunks
from tpas.training.objective import FineTuningObjective

UPSTREAM_LENGTH = 70
# Name to (LoRA rank, gradient checkpointing, rows of a cached chunk, mixed precision).
OPTIONS = {
    "whole batch, fp32": (0, False, 0, "no"),
    "bf16": (0, False, 0, "bf16"),
    "gradient checkpointing": (0, True, 0, "no"),
    "cached gradients, chunks of 1": (0, False, 1, "no"),
    "LoRA rank 16": (16, False, 0, "no"),
    "LoRA rank 16, cached, checkpointing": (16, True, 1, "no"),
}


def batch_of(model: TPASModel, pairs: int) -> dict[str, Tensor]:
    """Images of noise, captions of 40 to 60 tokens beside [CLS] and [SEP], padded to the longest."""
    generator = torch.Generator().manual_seed(1)
    size, vocabulary = model.config.vision_config.image_size, model.config.text_config.vocab_size
    lengths = torch.randint(42, 63, (pairs, 1), generator=generator)
    longest = int(lengths.max())
    mask = (torch.arange(longest) < lengths).long()
    return {
        "pixel_values": torch.randn(pairs, 3, size, size, generator=generator),
        "input_ids": torch.randint(vocabulary, (pairs, longest), generator=generator) * mask,
        "attention_mask": mask,
        "image_ids": torch.arange(pairs),
    }


def upstream_loss(model: TPASModel, batch: dict[str, Tensor]) -> Tensor:
    """The same losses as `FineTuningObjective`, on upstream's schedule."""
    padding = (0, UPSTREAM_LENGTH - batch["input_ids"].shape[1])
    ids, mask = (F.pad(batch[name], padding) for name in ("input_ids", "attention_mask"))
    image = model.get_image_features(batch["pixel_values"])
    text = model.get_text_features(ids, mask)
    temperature = model.temperature()
    contrastive = contrastive_loss(image.pooler_output, text.pooler_output, temperature, batch["image_ids"])
    with torch.no_grad():
        similarity = image.pooler_output @ text.pooler_output.t() / temperature
        rows = range(len(similarity))
        to_text, to_image = (scores.softmax(dim=1) + 1e-5 for scores in (similarity, similarity.t()))
        to_text.fill_diagonal_(0)
        to_image.fill_diagonal_(0)
        images = [torch.multinomial(to_image[row], 1).item() for row in rows]
        texts = [torch.multinomial(to_text[row], 1).item() for row in rows]
    states, words = image.last_hidden_state, text.last_hidden_state
    positive = model.match(states, words, mask)
    negative = model.match(
        torch.cat([torch.stack([states[row] for row in images]), states]),
        torch.cat([words, torch.stack([words[row] for row in texts])]),
        torch.cat([mask, torch.stack([mask[row] for row in texts])]),
    )
    labels = torch.arange(len(positive) + len(negative), device=positive.device) < len(positive)
    return contrastive + F.cross_entropy(torch.cat([positive, negative]), labels.long())


def compare_times(quick: bool, pairs: int, repeats: int) -> dict[str, float]:
    """Medians of seconds a step, and of the ratio of two steps that follow each other."""
    ours, theirs = measuring.build_model(quick).train(), measuring.build_model(quick).train()
    theirs.set_attn_implementation("eager")
    objective, batch = FineTuningObjective(ours), batch_of(ours, pairs)

    def step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    def step_of(model: TPASModel, loss: Callable[[], Tensor]) -> Callable[[], None]:
        return partial(step, loss, torch.optim.AdamW(model.parameters(), lr=1e-6))

    steps = {
        "upstream": step_of(theirs, lambda: upstream_loss(theirs, batch)),
        "ours": step_of(ours, lambda: objective(**batch)["loss"]),
    }
    seconds = measuring.time_in_turn(steps, repeats, warm_up=True)
    ratios = [slower / faster for slower, faster in zip(*seconds.values(), strict=True)]
    medians = {f"{name}_seconds": statistics.median(times) for name, times in seconds.items()}
    ratio = {"ratio": statistics.median(ratios), "least_ratio": min(ratios), "greatest_ratio": max(ratios)}
    return medians | ratio


def memory_of(option: str, quick: bool, pairs: int) -> float:
    """GB beyond the imports, for two steps. To be called in a fresh process."""
    rank, checkpointing, chunk_size, precision = OPTIONS[option]
    before = measuring.peak_memory()
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    network = measuring.build_model(quick)
    batch = batch_of(network, pairs)
    model = add_lora(network, rank, 2 * rank, 0.0) if rank else network
    if checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    objective = FineTuningObjective(model)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    objective, optimizer = accelerator.prepare(objective, torch.optim.AdamW(trained, lr=1e-6))
    objective.train()
    for _ in range(2):
        if chunk_size:
            backward_in_chunks(accelerator.unwrap_model(objective), accelerator, chunk_size, **batch)
        else:
            accelerator.backward(objective(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    return (measuring.peak_memory() - before) / 1e9


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=4, help="batch size (default: 4)")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each schedule (default: 5)")
    measuring.add_output_arguments(parser)
    arguments = parser.parse_args(argv)

    memory = {}
    for option in OPTIONS:
        memory[option] = measuring.in_fresh_process(memory_of, option, arguments.quick, arguments.pairs)
        print(f"{option:40}{memory[option]:8.2f} GB for {arguments.pairs} pairs", flush=True)
    times = compare_times(arguments.quick, arguments.pairs, arguments.repeats)
    print(
        f"a step of {arguments.pairs} pairs: upstream's schedule {times['upstream_seconds']:.2f} s, ours "
        f"{times['ours_seconds']:.2f} s, ratio {times['ratio']:.2f} "
        f"({times['least_ratio']:.2f} to {times['greatest_ratio']:.2f})"
    )
    settings = {"pairs": arguments.pairs, "repeats": arguments.repeats, "quick": arguments.quick}
    settings["threads"] = torch.get_num_threads()
    measuring.write_output(arguments.output, {"settings": settings, "times": times, "memory_gb": memory})


if __name__ == "__main__":
    main()
