"""A training step of this code against the straightforward upstream schedule.

    python benchmarks/training_step.py                # full size, random weights, minutes on two cores
    python benchmarks/training_step.py --start demo_start --pairs 48     # the demo's model
    python benchmarks/training_step.py --quick        # a tiny model: only shows that the script runs

Time: all programs do forward, backward and AdamW on the same pairs of drawn noise and captions of 40 to 60
words, in turn, and the median of the ratios to upstream's schedule in fp32 is reported. That schedule pads
every caption to 70 tokens, writes its attention out, picks hard negatives in a loop over the batch, runs the
cross-modal encoder once for the positive and once for the negative pairs, and leaves the optimizer to torch.
"torch's kernels" is ours without `training.on_cpu`. Operators: of one step of either schedule, from torch's
profiler, whose own time counts where they are small.

Losses: of two pairs, whose negatives need no draw, without dropout: how far loss and gradients are from those
of upstream's schedule (gradients: norm of the difference over the norm).

Memory: each option takes two steps in a fresh process; reported is the peak resident size beyond that of
the imports, with weights, gradients and AdamW's moments in it.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import measuring
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tpas.modeling_tpas import TPASModel
from tpas.models.lora import add_lora
from tpas.objectives import contrastive_loss
from tpas.training.gradient_cache import backward_in_chunks
from tpas.training.objective import FineTuningObjective, network_of
from tpas.training.on_cpu import fast_on_cpu

UPSTREAM_LENGTH = 70
CPU = torch.device("cpu")
UPSTREAM, OURS = "upstream's schedule", "fp32"


class Program(NamedTuple):
    """A way to do a step: whose schedule, in which precision, and what is switched on."""

    upstream: bool = False
    precision: str = "no"
    fast: bool = True
    lora_rank: int = 0
    checkpointing: bool = False
    chunk_size: int = 0


TIMED = {
    UPSTREAM: Program(upstream=True),
    "fp32, torch's kernels": Program(fast=False),
    OURS: Program(),
    "upstream's schedule, bf16": Program(upstream=True, precision="bf16"),
    "bf16": Program(precision="bf16"),
    "LoRA rank 16": Program(lora_rank=16),
    "LoRA rank 16, bf16": Program(lora_rank=16, precision="bf16"),
}
MEASURED = {
    **{name: program for name, program in TIMED.items() if program.fast},
    "gradient checkpointing": Program(checkpointing=True),
    "cached gradients, chunks of 1": Program(chunk_size=1),
    "LoRA rank 16, cached, checkpointing": Program(lora_rank=16, checkpointing=True, chunk_size=1),
}
# What torch's operators are, by the beginnings of their names.
OPERATORS = {
    "linear layers": ("aten::mm", "aten::addmm", "aten::mkldnn_convolution", "aten::convolution_backward"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot", "aten::softmax"),
    "activations, norms, dropout": ("aten::gelu", "aten::native_layer_norm", "aten::bernoulli"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::index", "aten::fill_"),
    "AdamW": ("aten::_fused_adamw", "aten::sqrt", "aten::lerp", "aten::addcdiv", "aten::addcmul"),
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


def build_model(start: str | None, quick: bool) -> TPASModel:
    return measuring.build_model(quick) if start is None else TPASModel.from_pretrained(start)


def step_of(program: Program, model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Does a step of the model, which is the network or an adapter over it."""
    network = network_of(model)
    if program.checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    accelerator = Accelerator(cpu=True)
    objective = FineTuningObjective(model).train()
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    fused = None if program.upstream else True
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=fused)

    def step() -> None:
        network.set_attn_implementation("eager" if program.upstream else "sdpa")
        fast = program.fast and not program.upstream
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=program.precision == "bf16")
        with fast_on_cpu(network, CPU) if fast else nullcontext():
            with autocast:
                if program.chunk_size:
                    backward_in_chunks(objective, accelerator, program.chunk_size, **batch)
                else:
                    loss = upstream_loss(network, batch) if program.upstream else objective(**batch)["loss"]
            if not program.chunk_size:
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def compare_times(
    start: str | None, quick: bool, pairs: int, repeats: int, cpu_time: bool
) -> dict[str, dict[str, float]]:
    """By program the median of the seconds, and of the ratios to upstream's schedule beside it."""
    network, base = build_model(start, quick), build_model(start, quick)
    batch, adapted = batch_of(network, pairs), add_lora(base, 16, 32, 0.0)
    steps = {
        name: step_of(program, adapted if program.lora_rank else network, batch)
        for name, program in TIMED.items()
    }
    seconds = measuring.time_in_turn(steps, repeats, cpu_time, warm_up=True)
    times = {}
    for name, own in seconds.items():
        ratios = [slower / faster for slower, faster in zip(seconds[UPSTREAM], own, strict=True)]
        times[name] = {"seconds": statistics.median(own), "ratio": statistics.median(ratios)}
        times[name] |= {"least_ratio": min(ratios), "greatest_ratio": max(ratios)}
    return times


def compare_operators(start: str | None, quick: bool, pairs: int) -> dict[str, dict[str, float]]:
    """By program the seconds of one step in each kind of operator."""
    network = build_model(start, quick)
    batch, seconds = batch_of(network, pairs), {}
    for name in (UPSTREAM, OURS, "bf16"):
        step = step_of(TIMED[name], network, batch)
        step()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        seconds[name] = dict.fromkeys((*OPERATORS, "the rest"), 0.0)
        for event in profiled.key_averages():
            kinds = (kind for kind, names in OPERATORS.items() if event.key.startswith(names))
            seconds[name][next(kinds, "the rest")] += event.self_cpu_time_total / 1e6
    return seconds


def compare_losses(start: str | None, quick: bool) -> dict[str, dict[str, float]]:
    """By program how far its loss and gradients are from those of upstream's schedule."""
    network = build_model(start, quick).train()
    for part in network.modules():
        for name in ("p", "drop_prob", "attention_dropout"):
            if hasattr(part, name):
                setattr(part, name, 0.0)
    batch, found = batch_of(network, 2), {}
    for name, program in TIMED.items():
        if program.lora_rank:
            continue
        network.set_attn_implementation("eager" if program.upstream else "sdpa")
        with fast_on_cpu(network, CPU) if program.fast else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=program.precision == "bf16"):
                ours = FineTuningObjective(network)
                loss = upstream_loss(network, batch) if program.upstream else ours(**batch)["loss"]
            loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in network.parameters()])
        network.zero_grad()
        if name == UPSTREAM:
            expected = loss.item(), gradients
        difference = (gradients - expected[1]).norm() / expected[1].norm()
        found[name] = {"loss": loss.item(), "loss_difference": abs(loss.item() - expected[0])}
        found[name]["gradient_difference"] = difference.item()
    return found


def memory_of(option: str, start: str | None, quick: bool, pairs: int) -> float:
    """GB beyond the imports, for two steps. To be called in a fresh process."""
    program, before = MEASURED[option], measuring.peak_memory()
    network = build_model(start, quick)
    rank = program.lora_rank
    model = add_lora(network, rank, 2 * rank, 0.0) if rank else network
    step = step_of(program, model, batch_of(network, pairs))
    for _ in range(2):
        step()
    return (measuring.peak_memory() - before) / 1e9


def tables(result: dict) -> list[str]:
    """Markdown."""
    rows = []
    for name, row in result["times"].items():
        bounds = f"{row['ratio']:.2f} ({row['least_ratio']:.2f} to {row['greatest_ratio']:.2f})"
        losses = result["losses"].get(name, {})
        differences = [
            f"{losses[f'{kind}_difference']:.1e}" if losses else "" for kind in ("loss", "gradient")
        ]
        rows.append((name, f"{row['seconds']:.2f}", bounds, *differences))
    heads = ("a step", "seconds", "x upstream's", "loss off by", "gradients off by")
    lines = [*measuring.markdown_table(heads, rows), ""]
    operators = result["operators"]
    rows = [(kind, *(f"{row[kind]:.2f}" for row in operators.values())) for kind in (*OPERATORS, "the rest")]
    lines += [*measuring.markdown_table(("seconds of a step in", *operators), rows), ""]
    rows = [(name, f"{memory:.2f}") for name, memory in result["memory_gb"].items()]
    return lines + measuring.markdown_table(("memory", "GB"), rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=4, help="batch size (default: 4)")
    parser.add_argument("--start", help="folder of a model, in place of random weights of full size")
    measuring.add_timing_arguments(parser, repeats=5)
    arguments = parser.parse_args(argv)
    start, quick, pairs = arguments.start, arguments.quick, arguments.pairs

    memory = {}
    for option in MEASURED:
        memory[option] = measuring.in_fresh_process(memory_of, option, start, quick, pairs)
        print(f"{option:40}{memory[option]:8.2f} GB for {pairs} pairs", file=sys.stderr, flush=True)
    settings = {"pairs": pairs, "repeats": arguments.repeats, "quick": quick, "start": start}
    result = {
        "settings": settings | measuring.machine(arguments.cpu_time),
        "times": compare_times(start, quick, pairs, arguments.repeats, arguments.cpu_time),
        "operators": compare_operators(start, quick, pairs),
        "losses": compare_losses(start, quick),
        "memory_gb": memory,
    }
    print("\n".join(tables(result)))
    measuring.write_output(arguments.output, result)


if __name__ == "__main__":
    main()
