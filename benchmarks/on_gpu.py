"""What a GPU makes of the whole model, each beside upstream's schedule on the same card; see on_gpu.sh.

    benchmarks/on_gpu.sh

A model of full size with random weights. "tf32" is fp32 whose matrix products a GPU rounds to 10 bits of
mantissa, which torch leaves off unless it is told (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1, or
`torch.backends.cuda.matmul.allow_tf32`).

Parity: the reference cases of upstream's own code on the card, and the model of full size on the card
against the same on the processor. Encoding and matching: all run in turn, and a ratio is the median over the
repeats. Upstream's schedule pads captions to 70 tokens, writes attention out, matches query by query, every
image of a shortlist anew, and keeps the images on the card, while the others bring them over; shortlists are
drawn so that an image is in 7 of them, as for PAB. The engine's attention in bf16 is flash attention. What
the precisions do to answers is shown by Recall@1 of the trained demo_start/ on drawn people as well.
Training: steps of forward, backward and AdamW, and the most memory of each; upstream's is that of
training_step.py.
`--quick` only shows that the script runs, without a GPU as well.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
import torch
from drawn_people import encode_people
from rerank import match_straightforwardly
from safetensors.torch import load_file
from training_step import batch_of, upstream_loss
from transformers import __version__ as transformers_version

from tpas.engine.encoding import encode_images
from tpas.engine.fast_encoding import FastEncoder
from tpas.engine.fast_matching import FastMatcher
from tpas.engine.matching import PlainMatcher
from tpas.modeling_tpas import TPASModel
from tpas.models.checkpoint_conversion import build_config, convert_state_dict
from tpas.models.lora import add_lora
from tpas.search.ranking import reorder
from tpas.training.objective import FineTuningObjective

UPSTREAM = "upstream fp32"
REFERENCE = Path(__file__).parents[1] / "tests" / "data" / "xvlm_reference"
OUTPUTS = ("image_embeds", "text_embeds", "match_logits")


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Within it "... tf32" rounds matrix products so."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "tf32" in name
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def finished(name: str, program: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The program in the precision of its name; its end is that of its work on the device."""

    def run() -> Any:
        with precision(name, device):
            output = program()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return output

    return run


def attempt(program: Callable[[], Any]) -> str | None:
    """What a first run, which is not timed, says where this card or set-up cannot do it."""
    try:
        program()
    except (RuntimeError, ImportError, OSError) as error:
        return str(error).strip().splitlines()[0]
    return None


def compared(
    programs: dict[str, Callable[[], torch.Tensor]], items: int, arguments: Any
) -> tuple[dict[str, dict], dict[str, torch.Tensor]]:
    """Items a second of each, how many times upstream's, and how far off; what cannot run says why."""
    rows, outputs = {}, {}
    programs = {name: finished(name, program, arguments.device) for name, program in programs.items()}
    for name, program in programs.items():
        start = time.perf_counter()
        failure = attempt(program)
        rows[name] = {"first_run_seconds": time.perf_counter() - start}
        if failure is None:
            outputs[name] = program().float()
        else:
            rows[name]["failure"] = failure
    programs = {name: programs[name] for name in outputs}
    seconds = measuring.time_in_turn(programs, arguments.repeats)
    for name in programs:
        rows[name] |= {
            "items_per_second": items / statistics.median(seconds[name]),
            "times_faster": measuring.median_ratio(seconds, UPSTREAM, name),
            "largest_difference": (outputs[name] - outputs[UPSTREAM]).abs().max().item(),
        }
    return rows, outputs


def upstream_reference(device: torch.device) -> tuple[TPASModel, dict[str, torch.Tensor]]:
    """The small model with the weights of upstream's reference, and its inputs and answers."""
    weights = {}
    for part in sorted(REFERENCE.glob("checkpoint_*.safetensors")):
        weights |= load_file(part)
    model = TPASModel(build_config(weights, REFERENCE / "swin.json", REFERENCE / "bert.json"))
    model.load_state_dict(convert_state_dict(weights, model).state_dict)
    answers = load_file(REFERENCE / "retrieval_io.safetensors")
    return model.eval().to(device), {name: tensor.to(device) for name, tensor in answers.items()}


def measure_parity(model: TPASModel, arguments: Any) -> dict[str, float]:
    """Largest differences on the card in fp32: to upstream's answers, and to the processor's."""
    small, reference = upstream_reference(arguments.device)
    texts, images = len(reference["text_ids"]), len(reference["image"])
    pairs = torch.cartesian_prod(torch.arange(texts), torch.arange(images)).to(arguments.device)
    inputs = reference["image"], reference["text_ids"], reference["text_atts"]
    similarity = small(*inputs).logits_per_image * small.temperature()
    rows = [part[index] for part, index in zip(inputs, (pairs[:, 1], pairs[:, 0], pairs[:, 0]), strict=True)]
    logits = small(*rows).match_logits.view_as(reference["itm_logits_t2i"])
    differences = {
        "upstream similarities": (similarity - reference["sims_i2t"]).abs().max().item(),
        "upstream match logits": (logits - reference["itm_logits_t2i"]).abs().max().item(),
    }
    size = model.config.vision_config.image_size
    inputs = (torch.randn(4, 3, size, size), *measuring.draw_token_ids(model, 4))
    on_card = model(*(part.to(arguments.device) for part in inputs))
    on_processor = deepcopy(model).cpu()(*inputs)
    for name in OUTPUTS:
        differences[f"processor {name}"] = (on_card[name].cpu() - on_processor[name]).abs().max().item()
    return differences


def measure_encoding(model: TPASModel, arguments: Any) -> dict[str, dict]:
    size = model.config.vision_config.image_size
    inputs = {"pixel_values": torch.randn(arguments.images, 3, size, size)}
    plain, narrow = deepcopy(model), deepcopy(model).to(torch.bfloat16)
    plain.set_attn_implementation("eager")
    encoders = {UPSTREAM: plain, "upstream tf32": plain, "model fp32": model, "model tf32": model}
    encoders |= {"model bf16": narrow}
    encoders |= {f"engine {name}": FastEncoder(model, dtype) for name, dtype in measuring.DTYPES.items()}
    programs = {
        name: lambda encoder=encoder: encode_images(encoder, inputs)[0] for name, encoder in encoders.items()
    }
    return compared(programs, arguments.images, arguments)[0]


def measure_matching(model: TPASModel, arguments: Any) -> dict[str, dict]:
    texts, images, shortlists = measuring.draw_sample(model.cpu(), arguments.queries, arguments.shortlist, 7)
    model.to(arguments.device)
    plain, narrow = deepcopy(model), deepcopy(model).to(torch.bfloat16)
    plain.set_attn_implementation("eager")
    on_card = replace(texts, **{key: part.to(arguments.device) for key, part in vars(texts).items()})
    images_on_card = images.to(arguments.device)

    def upstream() -> torch.Tensor:
        rows = [
            match_straightforwardly(plain, images_on_card, on_card, shortlist.to(arguments.device), query)
            for query, shortlist in enumerate(shortlists)
        ]
        return torch.stack(rows).cpu()

    matchers = {"model fp32": PlainMatcher(model), "model bf16": PlainMatcher(narrow)}
    fast = {f"engine {name}": FastMatcher(model, dtype) for name, dtype in measuring.DTYPES.items()}
    matchers |= {"engine fp32": fast["engine fp32"], "engine tf32": fast["engine fp32"]}
    matchers |= {"engine bf16": fast["engine bf16"]}
    scored = {
        name: lambda matcher=matcher: matcher.logits_of_shortlists(images, texts, shortlists)[:, :, 1]
        for name, matcher in matchers.items()
    }

    programs = {UPSTREAM: upstream, "upstream tf32": upstream, **scored}
    rows, outputs = compared(programs, shortlists.numel(), arguments)
    for name, scores in outputs.items():
        rows[name] |= measuring.agreement_of_orders(outputs[UPSTREAM], scores)
    return rows


def recall_on_drawn_people(arguments: Any) -> dict[str, float]:
    """Recall@1 of demo_start/ after matching on the card, every image re-ranked."""
    people, recalls = encode_people(arguments.test_pairs), {}
    gallery_ids, relevant = people.benchmark.gallery_ids, people.benchmark.relevant
    model = people.model.to(arguments.device)
    for name in ("fp32", "tf32", "bf16"):
        matcher = FastMatcher(model, measuring.DTYPES.get(name, torch.float32))
        with precision(name, arguments.device):
            scores = matcher.logits_of_shortlists(people.images, people.texts, people.ranking)[:, :, 1]
        first = reorder(people.ranking, scores)[0][:, 0].tolist()
        recalls[name] = statistics.fmean(
            gallery_ids[row] in ids for row, ids in zip(first, relevant, strict=True)
        )
    return recalls


def measure_training(arguments: Any) -> dict[str, dict]:
    """Seconds and memory of a step; each way with a model of its own, one after the other."""
    pairs, many = arguments.pairs, 4 * arguments.pairs
    ways = {
        UPSTREAM: pairs,
        "upstream tf32": pairs,
        "fp32": pairs,
        "tf32": pairs,
        "bf16": pairs,
        "bf16, LoRA": pairs,
        "bf16, recomputed activations": pairs,
        "upstream bf16, more pairs": many,
        "bf16, more pairs": many,
        "bf16, compiled": pairs,
    }
    on_gpu = arguments.device.type == "cuda"
    if not on_gpu:
        ways = {name: count for name, count in ways.items() if "compiled" not in name}
    rows = {}
    for name, count in ways.items():
        step = training_step(name, count, arguments)
        timed = finished(name, step, arguments.device)
        start = time.perf_counter()
        failure = attempt(timed)
        rows[name] = {"pairs": count, "first_run_seconds": time.perf_counter() - start}
        if failure is not None:
            rows[name]["failure"] = failure
        else:
            attempt(timed)  # a compiler meets the gradients' shapes again
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = statistics.median(measuring.time_in_turn({name: timed}, arguments.repeats)[name])
            memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
            rows[name] |= {"seconds_a_step": seconds, "pairs_per_second": count / seconds, "gb": memory}
            print(name, rows[name], file=sys.stderr, flush=True)
        del step, timed
        if on_gpu:
            torch.cuda.empty_cache()
    return rows


def training_step(name: str, pairs: int, arguments: Any) -> Callable[[], None]:
    network = measuring.build_model(arguments.quick, arguments.device).train()
    model = add_lora(network, 16, 32, 0.0) if "LoRA" in name else network
    if "recomputed" in name:
        network.activation_checkpointing_enable({"use_reentrant": False})
    if "compiled" in name:
        for encoder in (network.vision_model, network.text_model, network.cross_modal_encoder):
            encoder.compile()
    objective = FineTuningObjective(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-5)
    batch = {key: part.to(arguments.device) for key, part in batch_of(network, pairs).items()}
    if name.startswith("upstream"):
        network.set_attn_implementation("eager")

    def step() -> None:
        with torch.autocast(arguments.device.type, torch.bfloat16, enabled="bf16" in name):
            upstream = name.startswith("upstream")
            loss = upstream_loss(network, batch) if upstream else objective(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def tables(result: dict) -> str:
    """What on_gpu.md holds."""
    lines = ["# What `benchmarks/on_gpu.sh` printed", ""]
    versions = f"torch {result['torch']}, transformers {result['transformers']}"
    size = f"{result['parameters'] / 1e6:.0f} M parameters"
    lines += [
        f"{result['device']}, {versions}; random weights, {size}; {result['seconds']:.0f} s in all.",
        "",
    ]
    parity = [(name, f"{value:.1e}") for name, value in result["parity"].items()]
    lines += [*measuring.markdown_table(("the card in fp32 against", "largest difference"), parity), ""]
    for kind, unit in (("encoding", "images/s"), ("matching", "pairs/s")):
        heads = (kind, unit, "x upstream", "largest difference", "first 10 kept")
        rows = []
        for name, row in result[kind].items():
            if "failure" in row:
                rows.append((name, "cannot", "", row["failure"][:80], ""))
                continue
            kept = row.get("share_of_best_ten_kept")
            rows.append(
                (
                    name,
                    f"{row['items_per_second']:,.0f}",
                    f"{row['times_faster']:.2f}",
                    f"{row['largest_difference']:.1e}",
                    "" if kept is None else f"{kept:.1%}",
                )
            )
        lines += [*measuring.markdown_table(heads, rows), ""]
    recalls = [(name, f"{100 * value:.1f}") for name, value in result["recall_at_1_on_drawn_people"].items()]
    lines += [*measuring.markdown_table(("drawn people, matching", "Recall@1"), recalls), ""]
    rows = []
    for name, row in result["training"].items():
        if "failure" in row:
            figures = ("cannot", row["failure"][:80], "")
        else:
            memory = "" if row["gb"] is None else f"{row['gb']:.1f}"
            figures = (f"{row['pairs_per_second']:.1f}", f"{row['seconds_a_step']:.3f}", memory)
        rows.append((name, str(row["pairs"]), *figures))
    lines += measuring.markdown_table(("training step", "pairs", "pairs/s", "seconds", "GB"), rows)
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=128, help="encoded at once (default: 128)")
    parser.add_argument("--queries", type=int, default=32, help="default: 32")
    parser.add_argument("--shortlist", type=int, default=128, help="default: 128")
    parser.add_argument("--pairs", type=int, default=16, help="in a training step (default: 16)")
    parser.add_argument("--test_pairs", type=int, default=200, help="of drawn people (default: 200)")
    measuring.add_timing_arguments(parser, repeats=3)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.queries, arguments.shortlist, arguments.pairs = 4, 8, 4, 2
        arguments.test_pairs = 6
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here: --quick shows that the script runs")
    arguments.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    name = torch.cuda.get_device_name() if arguments.device.type == "cuda" else "no GPU"
    result = {"device": name, "torch": torch.__version__, "transformers": transformers_version}
    with torch.inference_mode():
        model = measuring.build_model(arguments.quick, arguments.device)
        result["parameters"] = model.num_parameters()
        result["parity"] = measure_parity(model, arguments)
        result["encoding"] = measure_encoding(model, arguments)
        result["matching"] = measure_matching(model, arguments)
        result["recall_at_1_on_drawn_people"] = recall_on_drawn_people(arguments)
    del model
    result["training"] = measure_training(arguments)
    result["seconds"] = time.perf_counter() - start
    print(tables(result))
    measuring.write_output(arguments.output, result, tables(result))


if __name__ == "__main__":
    main()
