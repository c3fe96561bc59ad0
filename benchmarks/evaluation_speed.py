"""How much faster an evaluation ranks with `FastMatcher` than with `model.match`, and whether ranks agree.

    OMP_NUM_THREADS=2 python benchmarks/evaluation_speed.py --output evaluation_speed.json

Times the whole of `rank_gallery` (what `tpas evaluate` waits for: reading and encoding images and captions,
all stages), and its matching alone, in turn on both ways: for the small trained model in demo_start/ on drawn
people, and for a model of full size with random weights. On PAB's test set an image is in 128 shortlists on
average, here in a few: so there the whole gains more than it does here. `--quick` only shows that the script
runs.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from drawn_people import draw_people
from measuring import CAPTION_WORDS, add_timing_arguments, build_model, machine, median_ratio, time_in_turn
from PIL import Image
from transformers import BertTokenizer

from tpas.data.whole_files import write_json
from tpas.engine.fastest import matcher_for
from tpas.engine.matching import PlainMatcher
from tpas.evaluation import ranking
from tpas.evaluation.ranking import Rankings, rank_gallery
from tpas.processing_tpas import TPASProcessor

WORDS = [f"word{number}" for number in range(200)]
WAYS = ("model.match", "FastMatcher")


def on_drawn_people(folder: Path, pairs: int, shortlist: int) -> Callable[[], Rankings]:
    people = draw_people(folder, pairs)
    benchmark = people.benchmark
    return lambda: rank_gallery(
        people.model,
        people.processor,
        benchmark.captions,
        benchmark.query_ids,
        people.images,
        benchmark.gallery_ids,
        shortlist=shortlist,
    )


def at_full_size(queries: int, shortlist: int, quick: bool) -> Callable[[], Rankings]:
    model = build_model(quick)
    count = max(queries, shortlist)
    generator = np.random.default_rng(0)
    size = model.config.vision_config.image_size
    images = [
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)
    ]
    lengths = np.linspace(*CAPTION_WORDS, queries).round().astype(int)
    captions = [" ".join(generator.choice(WORDS, length)) for length in lengths]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words = words[: model.config.text_config.vocab_size]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    processor = TPASProcessor.build(tokenizer, size)
    ids = [[f"{number:04}" for number in range(many)] for many in (queries, count)]
    return lambda: rank_gallery(model, processor, captions, ids[0], images, ids[1], shortlist=shortlist)


def measure(rank: Callable[[], Rankings], repeats: int, cpu_time: bool) -> dict[str, float | int]:
    results, of_matching = {}, {way: [] for way in WAYS}
    match_all = ranking._EncodedGallery.match
    clock = time.process_time if cpu_time else time.perf_counter

    def run(way: str) -> Callable[[], None]:
        def timed_match(*arguments):
            start = clock()
            scores = match_all(*arguments)
            of_matching[way].append(clock() - start)
            return scores

        def program() -> None:
            with (
                mock.patch.object(
                    ranking, "matcher_for", matcher_for if way == "FastMatcher" else PlainMatcher
                ),
                mock.patch.object(ranking._EncodedGallery, "match", timed_match),
            ):
                results[way] = rank()

        return program

    programs = {way: run(way) for way in WAYS}
    programs["FastMatcher"]()  # a first run, not timed: oneDNN compiles its kernels
    of_matching["FastMatcher"].clear()
    seconds = time_in_turn(programs, repeats, cpu_time)
    slow, fast = (results[way] for way in WAYS)
    pairs = fast.indices["matching"].numel()
    by_image = [
        ranked.scores["matching"].gather(1, ranked.indices["matching"].argsort(dim=1))
        for ranked in (slow, fast)
    ]
    equal = (slow.indices["matching"] == fast.indices["matching"]).all(dim=1)
    return {
        "queries": len(equal),
        "pairs": pairs,
        "seconds": {way: statistics.median(seconds[way]) for way in WAYS},
        "times_faster": median_ratio(seconds, *WAYS),
        "matching_pairs_per_second": {way: pairs / statistics.median(of_matching[way]) for way in WAYS},
        "matching_times_faster": median_ratio(of_matching, *WAYS),
        "largest_score_difference": (by_image[0] - by_image[1]).abs().max().item(),
        "queries_of_equal_order": int(equal.sum()),
    }


def format_row(name: str, row: dict) -> str:
    seconds, rate = row["seconds"], row["matching_pairs_per_second"]
    return (
        f"{name}: {row['queries']} queries, {row['pairs']:,} pairs: {seconds['model.match']:.1f} s with "
        f"model.match, {seconds['FastMatcher']:.1f} s with FastMatcher, {row['times_faster']:.2f} times "
        f"faster; matching alone {rate['model.match']:.0f} and {rate['FastMatcher']:.0f} pairs/s, "
        f"{row['matching_times_faster']:.2f} times; scores differ by at most "
        f"{row['largest_score_difference']:.1e}, {row['queries_of_equal_order']} queries of equal order"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--drawn_pairs", type=int, default=200, help="for demo_start/ (default: 200)")
    parser.add_argument("--queries", type=int, default=16, help="at full size (default: 16)")
    parser.add_argument("--shortlist", type=int, default=128, help="for demo_start/ (default: 128)")
    parser.add_argument("--full_size_shortlist", type=int, default=16, help="default: 16")
    add_timing_arguments(parser, repeats=3)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.drawn_pairs, arguments.shortlist, arguments.repeats = 6, 4, 1
    with tempfile.TemporaryDirectory(prefix="tpas-evaluation-") as folder:
        drawn = on_drawn_people(Path(folder), arguments.drawn_pairs, arguments.shortlist)
        rows = {"demo_start/ on drawn people": measure(drawn, arguments.repeats, arguments.cpu_time)}
    full = at_full_size(arguments.queries, arguments.full_size_shortlist, arguments.quick)
    rows["full size, random weights"] = measure(full, arguments.repeats, arguments.cpu_time)
    result = machine(arguments.cpu_time) | {"rows": rows}
    print(f"{result['threads']} threads, {result['clock']} time")
    for name, row in rows.items():
        print(format_row(name, row))
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
