"""What a gallery of 2k, 37k, 1M and 100M images costs on this CPU, from unit costs measured in minutes.

    python benchmarks/gallery_costs.py --output benchmarks/gallery_costs.json

Encodes, searches and re-ranks a few images with a model of X-VLM base's size and random weights, ranks made
embeddings, and filters made records. Prints a Markdown table, in which what was not measured at its size is
marked; `--output` writes it as JSON and as Markdown. Disk and memory follow from bytes an image; times an
image grow in proportion.
"""

import argparse
import itertools
import os
import statistics
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import measuring
import torch
import torch.nn.functional as F
from made_gallery import CAMERAS, STARTED_AT, make_gallery
from measuring import seconds_of

from tpas.search.exact_index import ROUNDED_BYTES, ROUNDED_FROM, ExactIndex
from tpas.search.gallery import Gallery
from tpas.search.stored_gallery import StoredGallery

SIZES = (2_000, 37_000, 1_000_000, 100_000_000)
SHORTLIST = 128


def measure_units(folder: Path, count: int, texts: int, repeats: int, quick: bool) -> dict[str, float]:
    """Seconds and bytes of one image, text and pair, through [`Gallery`] alone.

    A pair is one of a single query, which reads each image for itself.
    """
    model = measuring.build_model(quick)
    processor = measuring.build_processor(model.config.vision_config.image_size)
    images = [(str(number), measuring.noise_image(320, 480, number)) for number in range(count)]
    captions = measuring.drawn_captions(texts, round(statistics.fmean(measuring.CAPTION_WORDS)))
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
        "process_bytes": measuring.peak_memory(),
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


def measure_filters(folder: Path, images: int, repeats: int) -> dict[str, float]:
    """Median seconds of opening a made gallery in shards of 512, and of finding an hour of one camera in it:
    by columns, at first and then, and record by record; in turn, and the rows are the same.
    """
    make_gallery(folder, images, shard_rows=512)
    gallery = Gallery.open(folder)
    camera, since = f"camera{CAMERAS // 2:03d}", datetime.fromisoformat(STARTED_AT) + timedelta(days=3)
    time = since, since + timedelta(hours=1)

    def by_records() -> list[int]:
        moments = StoredGallery(folder).moments()
        return [row for row, moment in moments if moment.camera == camera and moment.lasts_into(*time)]

    programs = {
        "open": lambda: Gallery.open(folder),
        "open and filter": lambda: Gallery.open(folder).rows_of_moments(camera, *time),
        "filter again": lambda: gallery.rows_of_moments(camera, *time),
        "by records": by_records,
    }
    assert programs["filter again"]().tolist() == by_records(), "columns say other than records"
    seconds = measuring.time_in_turn(programs, repeats)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return medians | {
        "images": images,
        "times_faster": measuring.median_ratio(seconds, "by records", "open and filter"),
    }


def cost_rows(units: dict[str, float], ranking: dict[int, float]) -> list[dict[str, float | bool]]:
    """The figures of each size; `ranked` says whether stage 1 was measured at that size."""
    largest = max(ranking)
    rows = []
    for images in SIZES:
        embedding = ranking.get(images, ranking[largest] * images / largest)
        row = {
            "images": images,
            "build_hours": images * units["image_seconds"] / 3600,
            "embedding_seconds": units["text_seconds"] + embedding,
            "matching_seconds": units["text_seconds"] + embedding + SHORTLIST * units["pair_seconds"],
            "ranked": images in ranking,
            "mapped_GB": images * 4 * units["embedding_size"] / 1e9,
            "disk_GB": images * (units["token_bytes"] + units["other_bytes"]) / 1e9,
            "disk_without_tokens_GB": images * units["other_bytes"] / 1e9,
        }
        rows.append(row)
    return rows


def duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{2 if seconds < 10 else 0}f} {name}"
    return f"{seconds / 86_400:,.0f} days"


def markdown(
    rows: list[dict],
    units: dict[str, float],
    later: float,
    settings: dict[str, int],
    filters: dict[str, float],
) -> str:
    process = units["process_bytes"] / 1e9
    ranked = ", ".join(f"{row['images']:,}" for row in rows if row["ranked"])
    heads = ["images", "build", "query, embeddings", "+ matching of 128", "memory", "disk", "without tokens"]
    cells = []
    for row in rows:
        times = [duration(row[stage]) for stage in ("embedding_seconds", "matching_seconds")]
        build, mark = duration(3600 * row["build_hours"]), "" if row["ranked"] else "*"
        memory = f"{process:.1f} GB + {row['mapped_GB']:,.2f} GB mapped*"
        disk = f"{row['disk_GB']:,.1f} GB*", f"{row['disk_without_tokens_GB']:,.2f} GB*"
        cells.append([f"{row['images']:,}", f"{build}*", f"{times[0]}{mark}", f"{times[1]}*", memory, *disk])
    lines = measuring.markdown_table(heads, cells)
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
        "",
        f"Among {filters['images']:,} records of films in shards of 512 an hour of one camera is found in "
        f"{filters['open and filter']:.2f} s with opening the gallery ({filters['open']:.2f} s), "
        f"{filters['times_faster']:.0f} times as fast as by its records ({filters['by records']:.1f} s), and "
        f"again in {filters['filter again'] * 1e3:.1f} ms.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A table of what a gallery costs, by its size.")
    parser.add_argument("--sample", type=int, default=48, help="images encoded and re-ranked (default: 48)")
    parser.add_argument("--texts", type=int, default=5, help="single queries (default: 5)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--filtered", type=int, default=1_000_000, help="records (default: 1,000,000)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    measuring.add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    sample = arguments.sample, arguments.texts, arguments.repeats, arguments.quick
    with tempfile.TemporaryDirectory() as temporary:
        units = measure_units(Path(temporary), *sample)
        filtered = 2_000 if arguments.quick else arguments.filtered
        filters = measure_filters(Path(temporary) / "filtered", filtered, arguments.repeats)
    sizes = [size for size in SIZES if size <= (37_000 if arguments.quick else 1_000_000)]
    ranking, later = measure_ranking(sizes, int(units["embedding_size"]), arguments.repeats)
    rows = cost_rows(units, ranking)
    settings = {"images": arguments.sample, "texts": arguments.texts, "threads": arguments.threads}
    table = markdown(rows, units, later, settings, filters)
    print(table, end="")
    content = {"settings": settings, "units": units, "ranking_seconds": ranking}
    content |= {"later_ranking_seconds": later, "rows": rows, "filters": filters}
    measuring.write_output(arguments.output, content, table)


if __name__ == "__main__":
    main()
