"""How much faster `FastMatcher` re-ranks than X-VLM's own schedule, and whether its answers are the same.

    OMP_NUM_THREADS=2 python benchmarks/rerank.py --output rerank.json

A model of full size with random weights; captions of 40 to 60 words; shortlists of 128, drawn so that an
image is in 7 of them, as it is on average for 1,978 queries over 36,773 images. That is a sample of such a
schedule with its proportions, and all its work is timed: reading texts, projecting images, every layer.

The straightforward schedule goes query by query: its caption padded to 70 tokens, its 128 images in one
`TPASModel.match` with eager attention and torch's own GEMM, as upstream does. It is timed one query a repeat,
in turn with the whole sample on the engine. Shares of the GEMM limit count linear layers alone; "at limit" is
how many times upstream's schedule an engine would be that did those at the limit, and the rest in no time.

What bf16 does to the answers is shown twice: to the order of this sample, where random weights leave scores
close together, and to the Recall@1 of the small trained model in demo_start/ on drawn people. `--quick` only
shows that the script runs.
"""

import argparse
import logging
import statistics
from collections import Counter

import measuring
import torch
from drawn_people import encode_people
from measuring import DTYPES

from tpas.engine.encoding import EncodedTexts
from tpas.engine.fast_matching import FastMatcher
from tpas.modeling_tpas import TPASModel
from tpas.search.ranking import reorder

PAB_PAIRS = 1978 * 128


def match_straightforwardly(model: TPASModel, images, texts: EncodedTexts, shortlist, query: int):
    """The match logits (K,) of one query as upstream computes them."""
    count = len(shortlist)
    logits = model.match(
        images[shortlist],
        texts.hidden_states[query].repeat(count, 1, 1),
        texts.attention_mask[query].repeat(count, 1),
    )
    return logits[:, 1]


def agreement(expected: torch.Tensor, scores: torch.Tensor) -> dict[str, float]:
    """How the scores (Q, K) and the orders that they give differ from the expected ones."""
    return {
        "largest_score_difference": (expected - scores).abs().max().item(),
        "score_deviation_within_a_query": expected.std(dim=1).mean().item(),
        "queries": len(expected),
    } | measuring.agreement_of_orders(expected, scores)


def recall_on_drawn_people(test_pairs: int) -> dict[str, float]:
    """Recall@1 of demo_start/ after matching, with fp32 and bf16 arithmetic, every image re-ranked."""
    people, recalls = encode_people(test_pairs), {}
    gallery_ids, relevant = people.benchmark.gallery_ids, people.benchmark.relevant
    for dtype in (torch.float32, torch.bfloat16):
        matcher = FastMatcher(people.model, dtype)
        scores = matcher.logits_of_shortlists(people.images, people.texts, people.ranking)[:, :, 1]
        first = reorder(people.ranking, scores)[0][:, 0].tolist()
        hits = [gallery_ids[row] in ids for row, ids in zip(first, relevant, strict=True)]
        recalls[str(dtype).removeprefix("torch.")] = statistics.fmean(hits)
    return recalls


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--queries", type=int, default=8, help="in the sample (default: 8)")
    parser.add_argument("--shortlist", type=int, default=128, help="default: 128")
    parser.add_argument("--pairs_per_image", type=float, default=7, help="default: 7, as for PAB")
    parser.add_argument("--test_pairs", type=int, default=200, help="of drawn people (default: 200)")
    measuring.add_timing_arguments(parser, repeats=3)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.queries, arguments.shortlist, arguments.pairs_per_image, arguments.test_pairs = 3, 8, 3, 6
    if arguments.queries < max(arguments.pairs_per_image, arguments.repeats):
        parser.error("a sample needs at least as many queries as pairs an image, and as repeats")
    logging.getLogger("tpas").setLevel(logging.ERROR)

    result = measure(arguments)
    result["recall_at_1_on_drawn_people"] = recall_on_drawn_people(arguments.test_pairs)
    print(format_result(result))
    measuring.write_output(arguments.output, result)


@torch.inference_mode()
def measure(arguments: argparse.Namespace) -> dict:
    model = measuring.build_model(arguments.quick)
    sample = arguments.queries, arguments.shortlist, arguments.pairs_per_image
    texts, images, shortlists = measuring.draw_sample(model, *sample)
    width = model.config.text_config.hidden_size
    scores = {}
    calls = Counter()

    def straightforward(name, attention):
        scores[name] = torch.empty(shortlists.shape)

        def run():
            model.set_attn_implementation(attention)
            query = max(0, calls[name] - 1)  # the first call, which is not timed, is for query 0 as well
            calls[name] += 1
            scores[name][query] = match_straightforwardly(model, images, texts, shortlists[query], query)

        return run

    def engine(name, dtype):
        matcher = FastMatcher(model, dtype)

        def run():
            scores[name] = matcher.logits_of_shortlists(images, texts, shortlists)[:, :, 1]

        return run

    programs = {
        "upstream": straightforward("upstream", "eager"),
        "upstream, sdpa": straightforward("upstream, sdpa", "sdpa"),
        **{f"engine {name}": engine(f"engine {name}", dtype) for name, dtype in DTYPES.items()},
    }
    compared = measuring.compare(programs, width, arguments.repeats, arguments.cpu_time)
    rows = {}
    for name in programs:
        pairs = shortlists.numel() if name.startswith("engine") else arguments.shortlist
        precision = "bf16" if name.endswith("bf16") else "fp32"
        rows[name] = compared.row(name, pairs, precision, "upstream", arguments.shortlist)
        rows[name]["answers"] = agreement(*(scores[n][: arguments.repeats] for n in ("upstream", name)))
    return measuring.machine(arguments.cpu_time) | {
        "sample": {
            "queries": len(shortlists),
            "shortlist": arguments.shortlist,
            "images": len(images),
            "text_tokens": texts.attention_mask.sum(dim=1).tolist(),
            "parameters": model.num_parameters(),
        },
        "gemm_limit_gflops": {name: compared.gemm_limit(name) / 1e9 for name in DTYPES},
        "rows": rows,
    }


def format_result(result: dict) -> str:
    sample, recalls = result["sample"], result["recall_at_1_on_drawn_people"]
    lines = [
        f"{sample['queries']} queries of {min(sample['text_tokens'])} to {max(sample['text_tokens'])} tokens "
        f"x {sample['shortlist']} of {sample['images']} images, {sample['parameters'] / 1e6:.0f} M "
        f"parameters, {result['threads']} threads, {result['clock']} time, "
        f"{measuring.limits_line(result['gemm_limit_gflops'])}",
        f"{'':16}{'pairs/s':>9}{'x upstream':>12}{'GFLOP/pair':>12}{'of limit':>10}{'at limit':>10}"
        f"{'largest diff.':>15}{'equal order':>13}{'equal first':>13}{'first 10 kept':>15}",
    ]
    for name, row in result["rows"].items():
        answers = row["answers"]
        queries = answers["queries"]
        lines.append(
            f"{name:16}{row['items_per_second']:9.1f}{row['times_faster']:12.2f}{row['gflop_per_item']:12.2f}"
            f"{row['share_of_gemm_limit']:10.0%}{row['times_faster_at_the_limit']:10.2f}"
            f"{answers['largest_score_difference']:15.1e}"
            f"{answers['queries_of_equal_order']:>10}/{queries:<2}{answers['queries_of_equal_first']:>10}/{queries:<2}"
            f"{answers['share_of_best_ten_kept']:15.1%}"
        )
    deviation = result["rows"]["upstream"]["answers"]["score_deviation_within_a_query"]
    lines.append(f"(a query's scores on these random weights deviate by {deviation:.1e})")
    names = ("upstream", *(f"engine {name}" for name in DTYPES))
    hours = {name: PAB_PAIRS / result["rows"][name]["items_per_second"] / 3600 for name in names}
    shown = ", ".join(f"{name} {value:.1f} h" for name, value in hours.items())
    lines.append(f"extrapolated to PAB's 1,978 queries x 128: {shown}")
    shown = ", ".join(f"{name} {100 * recall:.1f} %" for name, recall in recalls.items())
    lines.append(f"Recall@1 of demo_start/ on drawn people: {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
