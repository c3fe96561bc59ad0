"""What a gallery of 2k, 37k, 1M and 100M pictures costs on this CPU, from unit costs measured in minutes.

    python benchmarks/gallery_costs.py --output outputs/gallery_costs.json

Encodes, searches and re-ranks a few pictures with a model of X-VLM base's size and random weights, and ranks
made embeddings. Prints a Markdown table, in which what was not measured at its size is marked, and writes
JSON. Disk and memory follow from bytes a picture; times a picture grow in proportion.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BertTokenizer

from tpas.configuration_tpas import TPASConfig
from tpas.gallery.exact_index import ExactIndex
from tpas.modeling_tpas import TPASModel
from tpas.processing_tpas import TPASProcessor
from tpas.search import Gallery

SIZES = (2_000, 37_000, 1_000_000, 100_000_000)
SHORTLIST = 128
WORDS = [f"word{number}" for number in range(200)]
CAPTION_WORDS = 50  # as PAB's captions have


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """The median of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def full_size_model(quick: bool) -> tuple[TPASModel, TPASProcessor]:
    torch.manual_seed(0)
    config = TPASConfig()
    if quick:
        vision = {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
        text = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = TPASConfig(vision_config=vision, text_config=text, num_cross_modal_layers=1)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    return TPASModel(config).eval(), TPASProcessor.build(tokenizer, config.vision_config.image_size)


def made_pictures(count: int) -> list[tuple[str, Image.Image]]:
    generator = np.random.default_rng(0)
    shape = (480, 320, 3)
    return [
        (str(number), Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)))
        for number in range(count)
    ]


def made_texts(count: int) -> list[str]:
    generator = np.random.default_rng(1)
    return [" ".join(generator.choice(WORDS, CAPTION_WORDS)) for _ in range(count)]


def measure_units(folder: Path, pictures: int, texts: int, repeats: int, quick: bool) -> dict[str, float]:
    """Seconds and bytes of one picture, text and pair, through [`Gallery`] alone."""
    model, processor = full_size_model(quick)
    images, captions = made_pictures(pictures), made_texts(texts)
    numbers = itertools.count()

    def build(number: int) -> Gallery:
        return Gallery.build(model, processor, images, folder / str(number), batch_size=4)

    gallery = build(next(numbers))  # a first run that does not count
    encoding = seconds_of(lambda: build(next(numbers)), repeats)
    encoding -= seconds_of(lambda: build(0), repeats)  # finds all encoded: what does not grow with pictures
    gallery.search(captions, shortlist=pictures)  # as above
    by_embeddings = seconds_of(lambda: gallery.search(captions, rerank=False), repeats)
    matched = seconds_of(lambda: gallery.search(captions, shortlist=pictures), repeats)
    shard = gallery.stored.shards[0]
    tokens = shard["files"]["tokens.safetensors"]["bytes"]
    return {
        "picture_seconds": encoding / pictures,
        "text_seconds": by_embeddings / texts,
        "pair_seconds": max(0.0, matched - by_embeddings) / (pictures * texts),
        "token_bytes": tokens / pictures,
        "other_bytes": sum(file["bytes"] for file in shard["files"].values()) / pictures - tokens / pictures,
        "model_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "embedding_size": model.config.projection_dim,
    }


def measure_ranking(sizes: list[int], size: int, repeats: int) -> dict[int, float]:
    """Seconds of exact search for one query, the best 128, by pictures."""
    seconds = {}
    for pictures in sizes:
        embeddings = F.normalize(torch.randn(pictures, size), dim=1)
        index = ExactIndex([embeddings], torch.randperm(pictures))
        query = F.normalize(torch.randn(1, size), dim=1)
        index.search(query, SHORTLIST)
        seconds[pictures] = seconds_of(
            lambda index=index, query=query: index.search(query, SHORTLIST), repeats
        )
    return seconds


def cost_rows(units: dict[str, float], ranking: dict[int, float]) -> list[dict[str, float | bool]]:
    """The figures of each size; `ranked` says whether stage 1 was measured at that size."""
    largest = max(ranking)
    rows = []
    for pictures in SIZES:
        ranked = pictures in ranking
        embedding = ranking[pictures] if ranked else ranking[largest] * pictures / largest
        rows.append(
            {
                "pictures": pictures,
                "build_hours": pictures * units["picture_seconds"] / 3600,
                "embedding_seconds": units["text_seconds"] + embedding,
                "matching_seconds": units["text_seconds"] + embedding + SHORTLIST * units["pair_seconds"],
                "ranked": ranked,
                "mapped_GB": pictures * 4 * units["embedding_size"] / 1e9,
                "disk_GB": pictures * (units["token_bytes"] + units["other_bytes"]) / 1e9,
                "disk_without_tokens_GB": pictures * units["other_bytes"] / 1e9,
            }
        )
    return rows


def duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{2 if seconds < 10 else 0}f} {name}"
    return f"{seconds / 86_400:,.0f} days"


def markdown(rows: list[dict[str, float | bool]], units: dict[str, float]) -> str:
    process = units["process_bytes"] / 1e9
    lines = [
        "| pictures | build | query, embeddings | + matching of 128 | memory | disk | without tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = "" if row["ranked"] else "*"
        lines.append(
            f"| {row['pictures']:,} | {duration(3600 * row['build_hours'])}* "
            f"| {duration(row['embedding_seconds'])}{mark} | {duration(row['matching_seconds'])}* "
            f"| {process:.1f} GB + {row['mapped_GB']:,.2f} GB mapped* "
            f"| {row['disk_GB']:,.1f} GB* | {row['disk_without_tokens_GB']:,.2f} GB* |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A table of what a gallery costs, by its size.")
    parser.add_argument("--sample", type=int, default=8, help="pictures encoded and re-ranked (default: 8)")
    parser.add_argument("--texts", type=int, default=4, help="texts that read each of them (default: 4)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it runs")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        units = measure_units(
            Path(temporary), arguments.sample, arguments.texts, arguments.repeats, arguments.quick
        )
    sizes = [size for size in SIZES if size <= (37_000 if arguments.quick else 1_000_000)]
    ranking = measure_ranking(sizes, int(units["embedding_size"]), arguments.repeats)
    rows = cost_rows(units, ranking)
    print(markdown(rows, units))
    print(
        f"\n\\* extrapolated from {arguments.sample} pictures and {arguments.texts} texts, on "
        f"{arguments.threads} CPU threads: {units['picture_seconds']:.3f} s a picture, "
        f"{units['text_seconds']:.3f} s a text, {units['pair_seconds']:.4f} s a pair, "
        f"{units['token_bytes'] / 1e3:.0f} KB of tokens and {units['other_bytes'] / 1e3:.2f} KB of the rest "
        f"a picture. Embeddings were ranked at {', '.join(f'{size:,}' for size in sizes)}, exactly."
    )
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        content = {"units": units, "ranking_seconds": ranking, "rows": rows, "threads": arguments.threads}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
