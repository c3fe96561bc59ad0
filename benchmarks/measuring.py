"""What the benchmarks share: a model, its input, timing in turn, the GEMM limit, memory, flags and output."""

import argparse
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import BertTokenizer

from tpas.configuration_tpas import TPASConfig
from tpas.data.whole_files import write_json, write_text
from tpas.engine.encoding import EncodedTexts
from tpas.engine.packed_layers import PackedLinear
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor, load_image

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CAPTION_WORDS = (40, 60)
SPECIAL_TOKENS = 2  # [CLS] and [SEP]
BEST = 10  # answers of a query
WORDS = [f"word{number}" for number in range(90)]  # with five special tokens, fewer than a tiny model knows
TINY_VISION = {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
TINY_TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def build_model(quick: bool, device: torch.device | str = "cpu") -> TPASModel:
    """A model of full size, or a tiny one, with random weights, the same each time on the same device."""
    torch.manual_seed(0)
    tiny = {"vision_config": TINY_VISION, "text_config": TINY_TEXT, "num_cross_modal_layers": 3}
    with torch.device(device):  # where they are drawn: much faster on a GPU
        return TPASModel(TPASConfig(**tiny if quick else {})).eval().to(device)


def build_processor(image_size: int, **settings: Any) -> TPASProcessor:
    """Of square images, and captions of `WORDS`."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    return TPASProcessor.build(tokenizer, image_size, **settings)


def noise_image(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def drawn_captions(count: int, words: int) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, words)) for _ in range(count)]


def draw_token_ids(model: TPASModel, texts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random captions of 40 to 60 words: token ids and mask (T, L), padded to the model's longest text."""
    words = torch.linspace(*CAPTION_WORDS, texts).round().long()
    mask = (torch.arange(model.config.max_text_length) < words[:, None] + SPECIAL_TOKENS).long()
    return torch.randint(model.config.text_config.vocab_size, mask.shape), mask


def draw_sample(model: TPASModel, queries: int, shortlist: int, pairs_per_image: float):
    """Random texts as the model reads them, images (G, 1+N, Dv), and shortlists (Q, K)."""
    input_ids, mask = draw_token_ids(model, queries)
    text = model.get_text_features(input_ids, mask)
    texts = EncodedTexts(text.pooler_output, text.last_hidden_state * mask[:, :, None], mask)
    vision = model.config.vision_config
    tokens = 1 + (vision.image_size // vision.patch_size // 2 ** (len(vision.depths) - 1)) ** 2
    gallery_size = round(queries * shortlist / pairs_per_image)
    images = torch.randn(gallery_size, tokens, vision.hidden_size)
    shortlists = torch.stack([torch.randperm(len(images))[:shortlist] for _ in range(queries)])
    return texts, images, shortlists


def agreement_of_orders(expected: torch.Tensor, scores: torch.Tensor) -> dict[str, float]:
    """How the orders that scores (Q, K) give differ from the expected ones; equal scores keep their order."""
    orders = [values.sort(dim=1, descending=True, stable=True).indices for values in (expected, scores)]
    best = [[set(row[:BEST].tolist()) for row in order] for order in orders]
    equal = orders[0] == orders[1]
    return {
        "queries_of_equal_order": int(equal.all(dim=1).sum()),
        "queries_of_equal_best_ten": int(equal[:, :BEST].all(dim=1).sum()),
        "queries_of_equal_first": int(equal[:, 0].sum()),
        "share_of_best_ten_kept": statistics.fmean(len(a & b) / len(a) for a, b in zip(*best, strict=True)),
    }


def time_in_turn(
    programs: dict[Any, Callable[[], Any]], repeats: int, cpu_time: bool = False, warm_up: bool = False
) -> dict[Any, list[float]]:
    """Seconds of each program in each repeat; all run once before the next repeat begins.

    So what else the machine does falls on all alike, and ratios within a repeat are fair. For a busy
    machine `cpu_time` counts the process's own; threads that wait count as well, so use one thread then.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    for program in programs.values() if warm_up else ():  # a first run, not timed
        program()
    seconds = {name: [] for name in programs}
    for repeat in range(repeats):
        for name, program in programs.items():
            start = clock()
            program()
            seconds[name].append(clock() - start)
            print(f"repeat {repeat + 1}: {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """The median of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def seconds_to_read(files: Iterable[Path], processor: TPASProcessor, repeats: int = 1) -> float:
    """Median time from an image file to `pixel_values`, in one thread."""
    return statistics.median(
        seconds_of(lambda file=file: processor(images=[load_image(file)]), repeats) for file in files
    )


def peak_memory() -> int:
    """Peak resident bytes of this process, which in getrusage may be those of the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns, called where nothing was done before; its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def median_ratio(seconds: Mapping[Any, list[float]], slow: Any, fast: Any, work: float = 1.0) -> float:
    """How many times faster `fast` is; `work` is its share of work relative to that of `slow`."""
    return statistics.median(work * a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


class GemmLimit:
    """A large product of matrices on the machine's fastest path, to hold everything else against."""

    times = 40  # about a second on two cores

    def __init__(self, width: int, dtype: torch.dtype):
        self.linear = PackedLinear(nn.Linear(width, 4 * width), dtype=dtype)
        self.rows = torch.randn(1024, width, dtype=dtype)

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(self.times):
            self.linear(self.rows)


@contextmanager
def count_operations():
    """Yields a list whose sum is the floating-point operations of all linear layers that ran meanwhile."""

    def count(module, inputs, output):
        if isinstance(module, (nn.Linear, PackedLinear)):
            operations.append(2 * inputs[0].shape[:-1].numel() * module.in_features * module.out_features)

    operations = []
    hook = nn.modules.module.register_module_forward_hook(count)
    try:
        yield operations
    finally:
        hook.remove()


@dataclass
class Comparison:
    """Programs that ran in turn, and a large GEMM in each number format with them.

    Attributes:
        seconds: of each repeat, by program.
        operations: floating-point operations of a program's linear layers.
        outputs: what the programs returned in a first run, which is not timed.
    """

    seconds: dict[Any, list[float]]
    operations: dict[Any, int]
    outputs: dict[Any, Any]

    def gemm_limit(self, precision: str) -> float:
        """Operations a second of the large GEMM in "fp32" or "bf16"."""
        limit = "limit", precision
        return self.operations[limit] / statistics.median(self.seconds[limit])

    def row(self, program: Any, items: int, precision: str, baseline: Any, baseline_items: int) -> dict:
        """The figures of one program that handles `items`, beside another one's."""
        limit = "limit", precision
        times = median_ratio(self.seconds, baseline, program, items / baseline_items)
        share = self.operations[program] / self.operations[limit] * median_ratio(self.seconds, limit, program)
        return {
            "items_per_second": items / statistics.median(self.seconds[program]),
            "times_faster": times,
            "share_of_gemm_limit": share,
            "times_faster_at_the_limit": times / share,
            "gflop_per_item": self.operations[program] / items / 1e9,
            "seconds": self.seconds[program],
        }


def compare(
    programs: Mapping[Any, Callable[[], Any]], width: int, repeats: int, cpu_time: bool = False
) -> Comparison:
    """Runs each once without counting its time, then all in turn; GEMMs are `width` wide."""
    limits = {("limit", name): GemmLimit(width, dtype) for name, dtype in DTYPES.items()}
    programs = {**programs, **limits}
    operations, outputs = {}, {}
    for name, program in programs.items():
        with count_operations() as counted:
            outputs[name] = program()
        operations[name] = sum(counted)
    return Comparison(time_in_turn(programs, repeats, cpu_time), operations, outputs)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--quick", action="store_true", help="everything tiny, to show that the script runs")


def add_timing_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """What every benchmark of speed takes."""
    parser.add_argument("--repeats", type=int, default=repeats, help=f"default: {repeats}")
    parser.add_argument("--cpu_time", action="store_true", help="not wall time; with OMP_NUM_THREADS=1")
    add_output_arguments(parser)


def machine(cpu_time: bool) -> dict[str, Any]:
    """How the figures were taken, to be written with them."""
    return {"threads": torch.get_num_threads(), "clock": "processor" if cpu_time else "wall"}


def machine_name() -> str:
    """The processor as the system names it, its cores, and how busy they were."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    name = named[1] if named else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}"


def limits_line(limits: Mapping[str, float]) -> str:
    return "GEMM limit in GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in limits.items())


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Its lines."""
    lines = ["".join(f"| {cell} " if cell else "| " for cell in cells) + "|" for cells in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


def write_output(path: Path | None, content: Any, table: str | None = None) -> None:
    """The figures as JSON, and a table as Markdown beside them, where a path is given."""
    if path is not None:
        write_json(path, content)
        if table is not None:
            write_text(path.with_suffix(".md"), table)
