"""What the cascade of bf16 and fp32 saves, whether the best ten stay the same, and what it brings in time.

    OMP_NUM_THREADS=2 python benchmarks/cascade.py --output cascade.json

On drawn people, with the small trained model in demo_start/: 200 queries with shortlists of 128, all in one
call and each in a call of its own (which learns the error of bf16 anew). Beside it stands the cascade that
was not chosen: fp32 alone, over shortlists that grow by the cosine's rank until a block of them brings
nothing into the best ten.

Its time is measured on that model and on one of full size. Random weights leave scores so close that there
would be nothing to save: so at full size fp32 reads the share of pairs that it read on drawn people, spread
alike over the queries. `--quick` only shows that the script runs.
"""

import argparse
import statistics
from functools import partial

import measuring
import torch
from drawn_people import encode_people
from measuring import BEST

from tpas.engine.encoding import EncodedTexts
from tpas.engine.fast_matching import FastMatcher
from tpas.engine.matching_cascade import MatchingCascade

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
    return {
        "queries": len(shortlists),
        "shortlist": shortlists.shape[1],
        "rows": rows,
        "error_bound": report.error_bound,
        "largest_error_of_bf16": (results["bf16"] - expected).abs().max().item(),
        "times_fp32": {name: measuring.median_ratio(seconds, "fp32", name) for name in ("bf16", "cascade")},
    }


def measure_time(arguments: argparse.Namespace, share_saved: float) -> dict:
    model = measuring.build_model(arguments.quick)
    sample = arguments.queries, arguments.shortlist, arguments.pairs_per_image
    with torch.inference_mode():
        texts, images, shortlists = measuring.draw_sample(model, *sample)
    exact, screen = FastMatcher(model), FastMatcher(model, torch.bfloat16)
    kept = max(1, round((1 - share_saved) * arguments.shortlist))

    in_fp32 = partial(exact.logits_of_shortlists, images, texts)
    in_bf16 = partial(screen.logits_of_shortlists, images, texts, shortlists)
    programs = {
        "fp32": lambda: in_fp32(shortlists),
        "bf16": in_bf16,
        "cascade": lambda: (in_bf16(), in_fp32(shortlists[:, :kept])),
    }
    seconds = measuring.time_in_turn(programs, arguments.repeats, arguments.cpu_time, warm_up=True)
    rates = {name: shortlists.numel() / statistics.median(times) for name, times in seconds.items()}
    return {
        "queries": len(shortlists),
        "shortlist": arguments.shortlist,
        "pairs_in_fp32_a_query": kept,
        "pairs_per_second": rates,
        "times_fp32": {name: measuring.median_ratio(seconds, "fp32", name) for name in ("bf16", "cascade")},
        "seconds": seconds,
    }


def format_result(result: dict) -> str:
    drawn, full = result["drawn_people"], result["full_size"]
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
    for name, part in (("demo_start/", drawn), ("full size", full)):
        lines.append(
            f"times faster than fp32 alone, {name}: bf16 {part['times_fp32']['bf16']:.2f}, "
            f"cascade {part['times_fp32']['cascade']:.2f}"
        )
    lines.append(f"{result['threads']} threads, {result['clock']} time")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--drawn_pairs", type=int, default=200, help="for demo_start/ (default: 200)")
    parser.add_argument("--queries", type=int, default=8, help="at full size (default: 8)")
    parser.add_argument("--shortlist", type=int, default=128, help="default: 128")
    parser.add_argument("--pairs_per_image", type=float, default=7, help="default: 7, as for PAB")
    measuring.add_timing_arguments(parser, repeats=3)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.drawn_pairs, arguments.queries, arguments.shortlist = 20, 3, 16
        arguments.pairs_per_image, arguments.repeats = 3, 1
    drawn = measure_saving(arguments.drawn_pairs, arguments.shortlist, arguments.repeats, arguments.cpu_time)
    result = measuring.machine(arguments.cpu_time) | {
        "drawn_people": drawn,
        "full_size": measure_time(arguments, drawn["rows"]["cascade"]["share_saved"]),
    }
    print(format_result(result))
    measuring.write_output(arguments.output, result)


if __name__ == "__main__":
    main()
