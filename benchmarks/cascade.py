"""What the cascade of bf16 and fp32 saves, whether the best ten stay the same, and what it brings in time.

    OMP_NUM_THREADS=2 python benchmarks/cascade.py --output cascade.json

On drawn people, with the small trained model in demo_start/: 200 queries with shortlists of 128, all in one
call and each in a call of its own (which learns the error of bf16 anew). Beside it stand the cascades that
were not chosen: fp32 alone, over shortlists that grow by the cosine's rank until a block of them brings
nothing into the best ten; or until the rest is ruled out by how far, above the line of a query's scores by
rank, any score was of the other half of the queries.

Its time is measured on that model and on one of full size. Random weights leave scores so close that there
would be nothing to save: so at full size fp32 reads the share of pairs that it read on drawn people, spread
alike over the queries. Two things are timed there: a night's sample, in which an image is in the shortlists
of several captions, beside X-VLM's schedule; and one live query, of few words and of many, whose first images
come out of 37,000 embeddings. Its image tokens are in memory. `--quick` only shows that the script runs.
"""

import argparse
import itertools
import statistics
from functools import partial

import measuring
import numpy as np
import torch
import torch.nn.functional as F
from drawn_people import encode_people
from measuring import BEST
from rerank import match_straightforwardly

from tpas.engine.encoding import EncodedTexts, encode_texts
from tpas.engine.fast_matching import FastMatcher
from tpas.engine.fastest import text_encoder_for
from tpas.engine.matching_cascade import MatchingCascade, even_batch_size
from tpas.modeling_tpas import TPASModel
from tpas.search.exact_index import ROUNDED_FROM, ExactIndex

LIVE_WORDS = (10, 50)  # a question, and a caption as long as PAB's
BLOCKS = {"16, 32, 48, ...": 16, "32, 64, 96, ...": 32}


def in_growing_shortlists(scores: torch.Tensor, block: int) -> tuple[float, torch.Tensor]:
    """The share of pairs saved, and the scores with minus infinity where they were not read."""
    kept = scores.clone()
    read = 0
    for query, row in enumerate(scores):
        size, found = block, None
        while size < len(row):
            before, found = found, set(row[:size].topk(min(BEST, size)).indices.tolist())
            if found == before:
                break
            size += block
        kept[query, size:] = -torch.inf
        read += min(size, len(row))
    return 1 - read / scores.numel(), kept


def until_ruled_out(scores: torch.Tensor, step: int) -> tuple[float, torch.Tensor]:
    """As [`in_growing_shortlists`], up to where a bound learnt from the other half rules out what follows."""
    size = scores.shape[1]
    stops, ranks = range(step, size, step), np.log1p(np.arange(size))

    def line(row: np.ndarray, stop: int) -> tuple[float, float]:
        """What is expected of those that follow, and how far the others are off."""
        fitted = np.polyfit(ranks[:stop], row[:stop], 1)
        off = (row[:stop] - np.polyval(fitted, ranks[:stop])).std()
        return float(np.polyval(fitted, ranks[(stop + size) // 2])), float(off)

    kept, read = scores.clone(), 0
    rows = scores.double().numpy()
    for half in (0, 1):
        largest = dict.fromkeys(stops, -np.inf)
        for row in rows[1 - half :: 2]:
            for stop in stops:
                expected, off = line(row, stop)
                largest[stop] = max(largest[stop], (row[stop:].max() - expected) / off)
        for query in range(half, len(rows), 2):
            stop = size
            for tried in stops if size > BEST else ():
                expected, off = line(rows[query], tried)
                if expected + largest[tried] * off < np.sort(rows[query, :tried])[-BEST:][0]:
                    stop = tried
                    break
            kept[query, stop:] = -torch.inf
            read += stop
    return 1 - read / scores.numel(), kept


def measure_saving(pairs: int, shortlist: int, repeats: int, cpu_time: bool) -> dict:
    people = encode_people(pairs)
    model, images, texts = people.model, people.images, people.texts
    shortlists = people.ranking[:, :shortlist]
    exact, screen, cascade = FastMatcher(model), FastMatcher(model, torch.bfloat16), MatchingCascade(model)
    results = {}

    def run_cascade():
        cascade.largest_error = 0.0
        results["cascade"] = cascade.logits_of_shortlists(images, texts, shortlists, BEST)

    def run(name, matcher):
        def program():
            results[name] = matcher.logits_of_shortlists(images, texts, shortlists)[:, :, 1]

        return program

    programs = {"fp32": run("fp32", exact), "bf16": run("bf16", screen), "cascade": run_cascade}
    seconds = measuring.time_in_turn(programs, repeats, cpu_time, warm_up=True)
    expected = results["fp32"]
    logits, report = results["cascade"]
    agreed = partial(measuring.agreement_of_orders, expected)
    rows = {
        "bf16 alone": {"share_saved": 1.0} | agreed(results["bf16"]),
        "cascade": {"share_saved": report.share_saved} | agreed(logits[:, :, 1]),
    }
    saved, scores = [], torch.empty(shortlists.shape)
    for query in range(len(shortlists)):
        row = slice(query, query + 1)
        cascade.largest_error = 0.0
        one = EncodedTexts(texts.embeds[row], texts.hidden_states[row], texts.attention_mask[row])
        logits, of_query = cascade.logits_of_shortlists(images, one, shortlists[row], BEST)
        saved.append(of_query.share_saved)
        scores[row] = logits[:, :, 1]
    rows["cascade, query by query"] = {"share_saved": statistics.fmean(saved)} | agreed(scores)
    for name, block in BLOCKS.items():
        share, scores = in_growing_shortlists(expected, block)
        rows[f"fp32 over {name}"] = {"share_saved": share} | agreed(scores)
    share, scores = until_ruled_out(expected, step=16)
    rows["fp32 until ruled out"] = {"share_saved": share} | agreed(scores)
    return {
        "queries": len(shortlists),
        "shortlist": shortlists.shape[1],
        "rows": rows,
        "error_bound": report.error_bound,
        "largest_error_of_bf16": (results["bf16"] - expected).abs().max().item(),
        "times_fp32": {name: measuring.median_ratio(seconds, "fp32", name) for name in ("bf16", "cascade")},
    }


def read_twice(cascade: MatchingCascade, images, texts: EncodedTexts, shortlists, kept: int) -> None:
    """As the cascade does: all by its screen, and so many of each query in fp32."""
    for matcher, part in ((cascade.screen, shortlists), (cascade.exact, shortlists[:, :kept])):
        batch_size = even_batch_size(matcher, part.numel())
        matcher.logits_of_shortlists(images, texts, part, batch_size=batch_size)


@torch.inference_mode()
def measure_night(model: TPASModel, arguments: argparse.Namespace, share_saved: float) -> dict:
    """X-VLM's schedule, query by query, and the engine over a whole sample with its proportions."""
    sample = arguments.queries, arguments.shortlist, arguments.pairs_per_image
    texts, images, shortlists = measuring.draw_sample(model, *sample)
    cascade = MatchingCascade(model)
    engines = {"fp32": FastMatcher(model), "bf16": FastMatcher(model, torch.bfloat16)}
    kept = max(1, round((1 - share_saved) * arguments.shortlist))
    scores = {}

    def upstream():
        scores["upstream"] = match_straightforwardly(model, images, texts, shortlists[0], 0)

    def run(name):
        def program():
            scores[name] = engines[name].logits_of_shortlists(images, texts, shortlists)[0, :, 1]

        return program

    def run_cascade():
        read_twice(cascade, images, texts, shortlists, kept)

    model.set_attn_implementation("eager")
    programs = {"upstream": upstream, "fp32": run("fp32"), "bf16": run("bf16"), "cascade": run_cascade}
    seconds = measuring.time_in_turn(programs, arguments.repeats, arguments.cpu_time, warm_up=True)
    model.set_attn_implementation("sdpa")
    pairs = {name: arguments.shortlist if name == "upstream" else shortlists.numel() for name in programs}
    rates = {name: pairs[name] / statistics.median(times) for name, times in seconds.items()}
    names = ("fp32", "bf16", "cascade")
    ratio = partial(measuring.median_ratio, seconds)
    return {
        "queries": len(shortlists),
        "shortlist": arguments.shortlist,
        "pairs_in_fp32_a_query": kept,
        "pairs_per_second": rates,
        "largest_difference_of_fp32": (scores["upstream"] - scores["fp32"]).abs().max().item(),
        "times_upstream": {name: ratio("upstream", name, work=len(shortlists)) for name in names},
        "times_fp32": {name: ratio("fp32", name) for name in ("bf16", "cascade")},
        "seconds": seconds,
    }


@torch.inference_mode()
def measure_live(model: TPASModel, arguments: argparse.Namespace, share_saved: float) -> list[dict]:
    """One query, everything warm: its first images by the embeddings, its best by fp32 and by the cascade."""
    processor = measuring.build_processor(model.config.vision_config.image_size)
    encoder, cascade, exact = text_encoder_for(model), MatchingCascade(model), FastMatcher(model)
    embeds = F.normalize(torch.randn(arguments.gallery, model.config.projection_dim), dim=1)
    index = ExactIndex([embeds], torch.randperm(arguments.gallery))
    index.search(embeds[: ROUNDED_FROM + 1], arguments.shortlist)
    _, images, shortlists = measuring.draw_sample(model, 1, arguments.shortlist, 1)
    images = images.half()
    kept = max(1, round((1 - share_saved) * arguments.shortlist))
    results = []
    for words in LIVE_WORDS:
        captions = itertools.cycle(measuring.drawn_captions(20, words))

        def first_images(captions=captions):
            texts = encode_texts(encoder, processor, [next(captions)])
            index.search(texts.embeds, arguments.shortlist)
            return texts

        def best_by_fp32(first_images=first_images):
            exact.logits_of_shortlists(images, first_images(), shortlists)

        def best_by_cascade(first_images=first_images):
            read_twice(cascade, images, first_images(), shortlists, kept)

        programs = {"first images": first_images, "fp32": best_by_fp32, "cascade": best_by_cascade}
        seconds = measuring.time_in_turn(programs, arguments.repeats, arguments.cpu_time, warm_up=True)
        results.append(
            {
                "words": words,
                "gallery": arguments.gallery,
                "shortlist": arguments.shortlist,
                "pairs_in_fp32": kept,
                "seconds": {name: statistics.median(times) for name, times in seconds.items()},
                "times_fp32": measuring.median_ratio(seconds, "fp32", "cascade"),
            }
        )
    return results


def format_result(result: dict) -> str:
    drawn, night = result["drawn_people"], result["full_size"]
    lines = [
        f"demo_start/ on drawn people, {drawn['queries']} queries x {drawn['shortlist']}; bf16 errs by up "
        f"to {drawn['largest_error_of_bf16']:.3f}, the cascade reckoned with {drawn['error_bound']:.3f}",
        f"{'':26}{'fp32 pairs saved':>18}{'equal best 10':>16}{'equal first':>14}",
    ]
    for name, row in drawn["rows"].items():
        lines.append(
            f"{name:26}{row['share_saved']:18.1%}{row['queries_of_equal_best_ten']:16}"
            f"{row['queries_of_equal_first']:14}"
        )
    for name, part in (("demo_start/", drawn), ("full size", night)):
        lines.append(
            f"times faster than fp32 alone, {name}: bf16 {part['times_fp32']['bf16']:.2f}, "
            f"cascade {part['times_fp32']['cascade']:.2f}"
        )
    times = ", ".join(f"{name} {times:.2f}" for name, times in night["times_upstream"].items())
    lines.append(
        f"times faster than X-VLM's schedule, full size, {night['queries']} captions x {night['shortlist']}: "
        f"{times}; fp32 differs by {night['largest_difference_of_fp32']:.1e}"
    )
    for live in result["live"]:
        shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in live["seconds"].items())
        lines.append(
            f"a live query of {live['words']} words, {live['gallery']:,} images: {shown} "
            f"({live['times_fp32']:.2f} times)"
        )
    lines.append(f"{result['threads']} threads, {result['clock']} time")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--drawn_pairs", type=int, default=200, help="for demo_start/ (default: 200)")
    parser.add_argument("--queries", type=int, default=8, help="at full size (default: 8)")
    parser.add_argument("--shortlist", type=int, default=128, help="default: 128")
    parser.add_argument("--pairs_per_image", type=float, default=7, help="default: 7, as for PAB")
    parser.add_argument("--gallery", type=int, default=37_000, help="of a live query (default: 37000)")
    measuring.add_timing_arguments(parser, repeats=3)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.drawn_pairs, arguments.queries, arguments.shortlist = 20, 3, 16
        arguments.pairs_per_image, arguments.repeats, arguments.gallery = 3, 1, 100
    drawn = measure_saving(arguments.drawn_pairs, arguments.shortlist, arguments.repeats, arguments.cpu_time)
    model = measuring.build_model(arguments.quick)
    rows = drawn["rows"]
    result = measuring.machine(arguments.cpu_time) | {
        "drawn_people": drawn,
        "full_size": measure_night(model, arguments, rows["cascade"]["share_saved"]),
        "live": measure_live(model, arguments, rows["cascade, query by query"]["share_saved"]),
    }
    print(format_result(result))
    measuring.write_output(arguments.output, result)


if __name__ == "__main__":
    main()
