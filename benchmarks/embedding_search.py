"""How fast exact embedding search is, beside the machine's limit and faiss, and what faiss's lists miss.

    python benchmarks/embedding_search.py                    # 1,000,000 x 256, 32 queries at once
    python benchmarks/embedding_search.py --lists clustered random    # also trains the approximate index
    python benchmarks/embedding_search.py --quick

An index that is asked many queries keeps a rounded copy of its rows, where the CPU has instructions for bf16,
and rules most rows out by it; the answer is exact all the same. "First queries" are those of a new index,
which has none yet.

The limit is the longer of two: reading all embeddings once at the measured bandwidth, and the product at the
rate of the fastest large fp32 product. For one query at a time it is the reading: of the rounded copy, where
that is read, half as many bytes. All are timed in turn, round after round; figures are medians,
and a ratio is the median of the rounds' ratios. That all find the same is checked first.
"""

import argparse
import os
import statistics
import time

import faiss
import torch
import torch.nn.functional as F
from measuring import add_timing_arguments, median_ratio, time_in_turn, write_output
from torch import Tensor, nn

from tpas.engine.packed_layers import PackedLinear
from tpas.search.exact_index import ROUNDED_FROM, ExactIndex
from tpas.search.faiss_index import FaissIndex

SHARD_ROWS = 512  # of a gallery as `Gallery.build` writes it
SQUARE = 2048  # rows and columns of the large product
UNSEEN_COSINES = (0.7, 0.35)  # of queries with the images that they are made from


def made_embeddings(kind: str, rows: int, size: int, seed: int = 0) -> Tensor:
    """Unit vectors: "random", or "clustered" around a centre for every thousand, at cosines of about 0.8."""
    generator = torch.Generator().manual_seed(seed)
    noise = F.normalize(torch.randn(rows, size, generator=generator), dim=1)
    if kind == "random":
        return noise
    centres = F.normalize(torch.randn(max(1, rows // 1000), size, generator=generator), dim=1)
    nearest = torch.randint(len(centres), (rows,), generator=generator)
    return F.normalize(centres[nearest] + 0.75 * noise, dim=1)


def made_queries(embeddings: Tensor, queries: int, cosine: float, seed: int = 1) -> Tensor:
    """Unit vectors at about this cosine from rows drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(embeddings), (queries,), generator=generator)
    noise = F.normalize(torch.randn(queries, embeddings.shape[1], generator=generator), dim=1)
    return F.normalize(embeddings[rows] + (1 / cosine**2 - 1) ** 0.5 * noise, dim=1)


def measure_exact(embeddings: Tensor, queries: Tensor, count: int, repeats: int, cpu_time: bool) -> dict:
    """Median seconds, ratios to faiss, and shares of the limit."""
    hashes = torch.randperm(len(embeddings))
    ours = ExactIndex([embeddings], hashes)
    sharded = ExactIndex([part.clone() for part in embeddings.split(SHARD_ROWS)], hashes)
    flat = faiss.IndexFlatIP(embeddings.shape[1])
    flat.add(embeddings.numpy())
    one = queries[:1]
    square = torch.randn(SQUARE, SQUARE)
    packed = PackedLinear(nn.Linear(SQUARE, SQUARE))
    programs = {
        "read": embeddings.sum,
        "product, oneDNN": lambda: packed(square),
        "product, torch": lambda: F.linear(square, square),
        "faiss flat": lambda: flat.search(queries.numpy(), count),
        "ours": lambda: ours.search(queries, count),
        "ours, shards of 512": lambda: sharded.search(queries, count),
        "ours, first queries": lambda: ExactIndex([embeddings], hashes).search(queries, count),
        "faiss flat, one query": lambda: flat.search(one.numpy(), count),
        "ours, one query": lambda: ours.search(one, count),
        "ours, first one query": lambda: ExactIndex([embeddings], hashes).search(one, count),
    }
    first_rows = programs["ours, first queries"]()[0]
    for index in (ours, sharded):
        index.search(queries.repeat(1 + ROUNDED_FROM // len(queries), 1), count)
        assert torch.equal(index.search(queries, count)[0], first_rows), "exact answers differ"
    kept = len(ours.rounded) / len(ours.spans)  # of the rows, rounded
    seconds = time_in_turn(programs, repeats, cpu_time, warm_up=True)
    share = embeddings.numel() * len(queries) / SQUARE**3  # of the large product's operations
    rounds = zip(seconds["read"], seconds["product, oneDNN"], seconds["product, torch"], strict=True)
    limits = [max(read, share * min(products)) for read, *products in rounds]
    result = {
        "limit": statistics.median(limits),
        "bandwidth_GB_s": embeddings.nbytes / statistics.median(seconds["read"]) / 1e9,
        "product_GFLOP_s": 2 * SQUARE**3 / statistics.median(seconds["product, oneDNN"]) / 1e9,
        "rows": [],
    }
    reads = {"ours, one query": 1 - kept / 2}  # of the bytes of all rows in fp32
    for name in (name for name in programs if name.startswith(("faiss", "ours"))):
        times, of_one = seconds[name], name.endswith("one query")
        row = {"name": name, "seconds": statistics.median(times), "fastest": min(times)}
        row["times_faiss"] = median_ratio(seconds, "faiss flat, one query" if of_one else "faiss flat", name)
        least = [reads.get(name, 1.0) * read for read in seconds["read"]] if of_one else limits
        shares = (limit / own for limit, own in zip(least, times, strict=True))
        row |= {"limit": "reading" if of_one else "product or reading"}
        result["rows"].append(row | {"share_of_limit": statistics.median(shares)})
    return result


def measure_lists(embeddings: Tensor, queries: int, count: int, repeats: int, cpu_time: bool) -> dict:
    """What the approximate index takes to build, what it finds of unseen queries, and how fast."""
    exact = ExactIndex([embeddings], torch.randperm(len(embeddings)))
    start = time.perf_counter()
    index, measured = FaissIndex.train(exact)
    result = {
        "build_seconds": time.perf_counter() - start,
        "lists": index.lists.nlist,
        "lists_read": index.lists.nprobe,
        "recall_when_built": measured,
        "recall": {},
    }
    for cosine in UNSEEN_COSINES:
        texts = made_queries(embeddings, 200, cosine, seed=2)
        wanted, _ = exact.search(texts, count)
        found, _ = index.search(texts, count)
        hits = [torch.isin(best, rows).double().mean() for best, rows in zip(wanted, found, strict=True)]
        result["recall"][str(cosine)] = torch.stack(hits).mean().item()
    texts = made_queries(embeddings, queries, UNSEEN_COSINES[-1], seed=3)
    programs = {"exact": lambda: exact.search(texts, count), "lists": lambda: index.search(texts, count)}
    seconds = time_in_turn(programs, repeats, cpu_time)
    return result | {f"{name}_seconds": statistics.median(times) for name, times in seconds.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Exact and approximate embedding search, timed.")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=256, help="of an embedding (default: 256)")
    parser.add_argument("--queries", type=int, default=32, help="at once (default: 32)")
    parser.add_argument("--count", type=int, default=128, help="images found for each (default: 128)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--lists", nargs="*", choices=["clustered", "random"], default=[])
    add_timing_arguments(parser, repeats=9)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.images, arguments.repeats = 40_000, 2
    torch.set_num_threads(arguments.threads)
    faiss.omp_set_num_threads(arguments.threads)

    images, size, queries, count = arguments.images, arguments.size, arguments.queries, arguments.count
    embeddings = made_embeddings("random", images, size)
    texts = made_queries(embeddings, queries, 0.5)
    timing = arguments.repeats, arguments.cpu_time
    exact = measure_exact(embeddings, texts, count, *timing)
    print(
        f"{images:,} x {size}, {queries} queries, best {count}, {arguments.threads} threads: "
        f"limit {exact['limit'] * 1e3:.0f} ms ({exact['bandwidth_GB_s']:.0f} GB/s, "
        f"{exact['product_GFLOP_s']:.0f} GFLOP/s)"
    )
    for row in exact["rows"]:
        print(
            f"{row['name']:22}{row['seconds'] * 1e3:8.0f} ms (fastest {row['fastest'] * 1e3:.0f})"
            f"{row['times_faiss']:7.2f} x faiss flat{row['share_of_limit']:8.0%} of the limit, {row['limit']}"
        )
    figures = {"images": images, "size": size, "queries": queries, "exact": exact, "lists": {}}
    for kind in arguments.lists:
        embeddings = made_embeddings(kind, images, size)
        figures["lists"][kind] = lists = measure_lists(embeddings, queries, count, *timing)
        recall = ", ".join(f"{value:.4f} at cosine {cosine}" for cosine, value in lists["recall"].items())
        print(
            f"faiss lists, {kind}: built in {lists['build_seconds']:.0f} s, reads {lists['lists_read']} of "
            f"{lists['lists']}; recall@{count} of unseen queries {recall}; "
            f"{lists['lists_seconds'] * 1e3:.0f} ms, exact {lists['exact_seconds'] * 1e3:.0f} ms"
        )
    write_output(arguments.output, figures)


if __name__ == "__main__":
    main()
