"""What a gallery of 2k, 37k, 1M and 100M images costs on this CPU, from unit costs measured in minutes.

    python benchmarks/gallery_costs.py --output benchmarks/gallery_costs.json

Encodes, searches and re-ranks a few images with a model of X-VLM base's size and random weights, and ranks
made embeddings. Prints a Markdown table, in which what was not measured at its size is marked; `--output`
writes it as JSON and as Markdown. Disk and memory follow from bytes an image; times an image grow in
proportion.
"""

import argparse
import itertools
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
from measuring import CAPTION_WORDS, build_model
from PIL import Image
from transformers import BertTokenizer

from tpas.data.whole_files import write_json, write_text
from tpas.processing_tpas import TPASProcessor
from tpas.search.exact_index import ROUNDED_BYTES, ROUNDED_FROM, ExactIndex
from tpas.search.gallery import Gallery

SIZES = (2_000, 37_000, 1_000_000, 100_000_000)
SHORTLIST = 128
WORDS = [f"word{number}" for number in range(90)]  # with five special tokens, fewer than a tiny model knows


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """The median of some runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def made_images(count: int) -> list[tuple[str, Image.Image]]:
    generator = np.random.default_rng(0)
    shape = (480, 320, 3)
    return [
        (str(number), Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)))
        for number in range(count)
    ]


def made_texts(count: int) -> list[str]:
    generator = np.random.default_rng(1)
    words = round(statistics.fmean(CAPTION_WORDS))
    return [" ".join(generator.choice(WORDS, words)) for _ in range(count)]


def measure_units(folder: Path, count: int, texts: int, repeats: int, quick: bool) -> dict[str, float]:
    """Seconds and bytes of one image, text and pair, through [`Gallery`] alone.

    A pair is one of a single query, which reads each image for itself.
    """
    model = build_model(quick)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    processor = TPASProcessor.build(tokenizer, model.config.vision_config.image_size)
    images, captions = made_images(count), made_texts(texts)
    numbers = itertools.count()

    def build(number: int) -> Gallery:
        return Gallery.build(model, processor, images, folder / str(number), batch_size=4)

    gallery = build(next(numbers))  # a first run that does not count
    encoding = seconds_of(lambda: build(next(numbers)), repeats)
    encoding -= seconds_of(lambda: build(0), repeats)  # finds all encoded: what does not grow with images
    turns = itertools.cycle(captions)

    def search(**settings) -> None:
        gallery.search([next(turns)], **settings)

    search(shortlist=count)  # as above
    by_embeddings = seconds_of(lambda: search(rerank=False), texts)
    matched = seconds_of(lambda: search(shortlist=count), texts)
    shard = gallery.stored.shards[0]
    tokens = shard["files"]["tokens.safetensors"]["bytes"]
    return {
        "image_seconds": encoding / count,
        "text_seconds": by_embeddings,
        "pair_seconds": max(0.0, matched - by_embeddings) / count,
        "token_bytes": tokens / count,
        "other_bytes": sum(file["bytes"] for file in shard["files"].values()) / count - tokens / count,
        "model_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "embedding_size": model.config.projection_dim,
    }


def measure_ranking(sizes: list[int], size: int, repeats: int) -> tuple[dict[int, float], float]:
    """Seconds of exact search for one query, the best 128: by images for the first queries that an index is
    asked, and for the most images once it was asked many.
    """
    seconds = {}
    for images in sizes:
        embeddings = F.normalize(torch.randn(images, size), dim=1)
        hashes = torch.randperm(images)
        query = F.normalize(torch.randn(1, size), dim=1)

        def first_search(embeddings=embeddings, hashes=hashes, query=query):
            ExactIndex([embeddings], hashes).search(query, SHORTLIST)

        first_search()
        seconds[images] = seconds_of(first_search, repeats)
    index = ExactIndex([embeddings], hashes)
    index.search(query.expand(ROUNDED_FROM + 1, -1), SHORTLIST)
    return seconds, seconds_of(lambda: index.search(query, SHORTLIST), repeats)


def cost_rows(units: dict[str, float], ranking: dict[int, float]) -> list[dict[str, float | bool]]:
    """The figures of each size; `ranked` says whether stage 1 was measured at that size."""
    largest = max(ranking)
    rows = []
    for images in SIZES:
        ranked = images in ranking
        embedding = ranking[images] if ranked else ranking[largest] * images / largest
        rows.append(
            {
                "images": images,
                "build_hours": images * units["image_seconds"] / 3600,
                "embedding_seconds": units["text_seconds"] + embedding,
                "matching_seconds": units["text_seconds"] + embedding + SHORTLIST * units["pair_seconds"],
                "ranked": ranked,
                "mapped_GB": images * 4 * units["embedding_size"] / 1e9,
                "disk_GB": images * (units["token_bytes"] + units["other_bytes"]) / 1e9,
                "disk_without_tokens_GB": images * units["other_bytes"] / 1e9,
            }
        )
    return rows


def duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{2 if seconds < 10 else 0}f} {name}"
    return f"{seconds / 86_400:,.0f} days"


def markdown(
    rows: list[dict[str, float | bool]], units: dict[str, float], later: float, settings: dict[str, int]
) -> str:
    process = units["process_bytes"] / 1e9
    ranked = ", ".join(f"{row['images']:,}" for row in rows if row["ranked"])
    lines = [
        "| images | build | query, embeddings | + matching of 128 | memory | disk | without tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = "" if row["ranked"] else "*"
        lines.append(
            f"| {row['images']:,} | {duration(3600 * row['build_hours'])}* "
            f"| {duration(row['embedding_seconds'])}{mark} | {duration(row['matching_seconds'])}* "
            f"| {process:.1f} GB + {row['mapped_GB']:,.2f} GB mapped* "
            f"| {row['disk_GB']:,.1f} GB* | {row['disk_without_tokens_GB']:,.2f} GB* |"
        )
    lines += [
        "",
        f"\\* extrapolated from {settings['images']} images and {settings['texts']} single queries on "
        f"{settings['threads']} CPU threads: {units['image_seconds']:.3f} s an image, "
        f"{units['text_seconds']:.3f} s a text, {units['pair_seconds']:.4f} s a pair, "
        f"{units['token_bytes'] / 1e3:.0f} KB of tokens and {units['other_bytes'] / 1e3:.2f} KB of the rest "
        f"an image. Embeddings were ranked at {ranked}, exactly, by an index that is asked for the first "
        f"time. One that was asked more than {ROUNDED_FROM} queries takes {later:.3f} s among the most of "
        f"them, and holds {2 * units['embedding_size'] / 1e3:.2f} KB more an image, at most "
        f"{ROUNDED_BYTES / 1e9:.1f} GB. What of the mapped part does not fit into the memory is read "
        "from the disk by each search, which is not in the figures.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A table of what a gallery costs, by its size.")
    parser.add_argument("--sample", type=int, default=48, help="images encoded and re-ranked (default: 48)")
    parser.add_argument("--texts", type=int, default=5, help="single queries (default: 5)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it runs")
    parser.add_argument(
        "--output", type=Path, help="write every figure here, and a .md of that name beside it"
    )
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        units = measure_units(
            Path(temporary), arguments.sample, arguments.texts, arguments.repeats, arguments.quick
        )
    sizes = [size for size in SIZES if size <= (37_000 if arguments.quick else 1_000_000)]
    ranking, later = measure_ranking(sizes, int(units["embedding_size"]), arguments.repeats)
    rows = cost_rows(units, ranking)
    settings = {"images": arguments.sample, "texts": arguments.texts, "threads": arguments.threads}
    table = markdown(rows, units, later, settings)
    print(table, end="")
    if arguments.output:
        content = {"settings": settings, "units": units, "ranking_seconds": ranking}
        content |= {"later_ranking_seconds": later, "rows": rows}
        write_json(arguments.output, content)
        write_text(arguments.output.with_suffix(".md"), table)


if __name__ == "__main__":
    main()
