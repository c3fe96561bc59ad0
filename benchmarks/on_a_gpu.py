"""What a GPU makes of the whole model: encoding, re-ranking and a training step, each beside the plain way.

    python benchmarks/on_a_gpu.py --output on_a_gpu.json

A model of full size with random weights. Encoding and re-ranking: the model's own code in fp32 and in bf16,
and the engine in both; all run in turn, and the ratio is the median over the repeats. Shortlists are drawn so
that an image is in 7 of them, as for PAB. Training: one step of the paper's batch of 16 pairs, forward,
backward and AdamW, in fp32, in bf16 autocast, and with recomputed activations, with the most memory of each.
`--quick` only shows that the script runs, without a GPU as well.
"""

import argparse
import statistics
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import measuring
import torch
from measuring import DTYPES

from tpas.engine.encoding import encode_images
from tpas.engine.fast_encoding import FastEncoder
from tpas.engine.fast_matching import FastMatcher
from tpas.engine.matching import PlainMatcher
from tpas.modeling_tpas import TPASModel
from tpas.training.objective import FineTuningObjective

BASELINE = "model fp32"


def finished(program: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The program, whose end is that of its work on the device."""

    def run() -> Any:
        output = program()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return output

    return run


def compared(
    programs: dict[str, Callable[[], torch.Tensor]], items: int, arguments: Any
) -> tuple[dict[str, dict], dict[str, torch.Tensor]]:
    """Items a second of each, how much faster it is than the model in fp32 and how far off; their outputs."""
    programs = {name: finished(program, arguments.device) for name, program in programs.items()}
    outputs = {name: program() for name, program in programs.items()}  # a first run, not timed
    seconds = measuring.time_in_turn(programs, arguments.repeats)
    return {
        name: {
            "items_per_second": items / statistics.median(seconds[name]),
            "times_faster": measuring.median_ratio(seconds, BASELINE, name),
            "largest_difference": (outputs[name] - outputs[BASELINE]).abs().max().item(),
        }
        for name in programs
    }, outputs


def measure_encoding(model: TPASModel, arguments: Any) -> dict[str, dict]:
    size = model.config.vision_config.image_size
    inputs = {"pixel_values": torch.randn(arguments.images, 3, size, size)}
    narrow = deepcopy(model).to(torch.bfloat16)
    encoders = {BASELINE: model, "model bf16": narrow}
    encoders |= {f"engine {name}": FastEncoder(model, dtype) for name, dtype in DTYPES.items()}
    programs = {
        name: lambda encoder=encoder: encode_images(encoder, inputs)[0] for name, encoder in encoders.items()
    }
    return compared(programs, arguments.images, arguments)[0]


def measure_matching(model: TPASModel, arguments: Any) -> dict[str, dict]:
    texts, images, shortlists = measuring.draw_sample(model.cpu(), arguments.queries, arguments.shortlist, 7)
    model.to(arguments.device)
    narrow = deepcopy(model).to(torch.bfloat16)
    matchers = {BASELINE: PlainMatcher(model), "model bf16": PlainMatcher(narrow)}
    matchers |= {f"engine {name}": FastMatcher(model, dtype) for name, dtype in DTYPES.items()}
    programs = {
        name: lambda matcher=matcher: matcher.logits_of_shortlists(images, texts, shortlists)[:, :, 1]
        for name, matcher in matchers.items()
    }
    rows, outputs = compared(programs, shortlists.numel(), arguments)
    for name, row in rows.items():
        row |= measuring.agreement_of_orders(outputs[BASELINE], outputs[name])
    return rows


def measure_training(arguments: Any) -> dict[str, dict]:
    """Seconds and memory of a step; each way with a model of its own, one after the other."""
    ways = {"fp32": (False, False), "bf16": (True, False), "bf16, recomputed activations": (True, True)}
    rows, pairs, on_gpu = {}, arguments.pairs, arguments.device.type == "cuda"
    for name, (narrow, recomputed) in ways.items():
        model = measuring.build_model(arguments.quick).to(arguments.device).train()
        if recomputed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        objective = FineTuningObjective(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
        size = model.config.vision_config.image_size
        input_ids, mask = measuring.draw_token_ids(model, pairs)
        batch = {"pixel_values": torch.randn(pairs, 3, size, size), "image_ids": torch.arange(pairs)}
        batch |= {"input_ids": input_ids, "attention_mask": mask}
        batch = {key: part.to(arguments.device) for key, part in batch.items()}

        def step(objective=objective, optimizer=optimizer, batch=batch, narrow=narrow) -> None:
            with torch.autocast(arguments.device.type, torch.bfloat16, enabled=narrow):
                loss = objective(**batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        timed = finished(step, arguments.device)
        timed()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(measuring.time_in_turn({name: timed}, arguments.repeats)[name])
        memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        rows[name] = {"seconds_a_step": seconds, "pairs_per_second": pairs / seconds, "gb": memory}
        del model, objective, optimizer, batch, step, timed
        if on_gpu:
            torch.cuda.empty_cache()
    return rows


def format_result(result: dict) -> str:
    lines = [f"{result['device']}, torch {result['torch']}, {result['parameters'] / 1e6:.0f} M parameters"]
    for kind, unit in (("encoding", "images/s"), ("matching", "pairs/s")):
        lines.append(f"{kind:30}{unit:>12}{'x fp32':>9}{'largest diff.':>15}{'first 10 kept':>15}")
        for name, row in result[kind].items():
            kept = row.get("share_of_best_ten_kept")
            lines.append(
                f"  {name:28}{row['items_per_second']:12,.0f}{row['times_faster']:9.2f}"
                f"{row['largest_difference']:15.1e}{'' if kept is None else f'{kept:.1%}':>15}"
            )
    lines.append(f"{'training step':30}{'pairs/s':>12}{'s a step':>9}{'GB':>15}")
    for name, row in result["training"].items():
        memory = "" if row["gb"] is None else f"{row['gb']:.1f}"
        lines.append(f"  {name:28}{row['pairs_per_second']:12,.1f}{row['seconds_a_step']:9.3f}{memory:>15}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=256, help="encoded at once (default: 256)")
    parser.add_argument("--queries", type=int, default=64, help="default: 64")
    parser.add_argument("--shortlist", type=int, default=128, help="default: 128")
    parser.add_argument("--pairs", type=int, default=16, help="in a training step (default: 16)")
    measuring.add_timing_arguments(parser, repeats=5)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.queries, arguments.shortlist, arguments.pairs = 4, 8, 4, 2
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here: --quick shows that the script runs")
    arguments.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if arguments.device.type == "cuda" else "no GPU"
    result = {"device": name, "torch": torch.__version__}
    with torch.inference_mode():
        model = measuring.build_model(arguments.quick).to(arguments.device)
        result["parameters"] = model.num_parameters()
        result["encoding"] = measure_encoding(model, arguments)
        result["matching"] = measure_matching(model, arguments)
    del model
    result["training"] = measure_training(arguments)
    print(format_result(result))
    measuring.write_output(arguments.output, result)


if __name__ == "__main__":
    main()
