"""How SCA grows: seconds and memory from a few queries to a million with ten candidates each, on one core.

    python benchmarks/sca_scale.py                       # up to 1,000,000 queries, every confidence
    python benchmarks/sca_scale.py --queries 10000 40000 --repeats 1

As many images as queries. "even": candidates are drawn evenly, so 63 in 100 images are some query's first
answer; "hubs": the larger an image's number the rarer it is, so queries crowd and move far more. Sizes are
interleaved within a setting, and each run is a fresh process. The number after the confidence is `max_shift`.
Seconds are processor time, which the load of other programs lengthens less than the clock's; growth is the
time a query takes relative to that among the fewest queries (1: linear); memory is the peak resident size,
input included.
"""

import argparse
import json
import os
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np

CANDIDATES = 10
CROWDING = {"even": 1, "hubs": 2}  # image = size x (a number drawn evenly below 1) to this power


def ranked_lists(queries: int, gallery: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """indices (Q, 10) int32 and descending scores (Q, 10) float32."""
    generator = np.random.default_rng(seed)

    def draw(rows: int) -> np.ndarray:
        return (queries * generator.random((rows, CANDIDATES)) ** CROWDING[gallery]).astype(np.int32)

    indices = draw(queries)
    while True:  # until no row holds an image twice
        ordered = np.sort(indices, axis=1)
        repeats = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if not repeats.any():
            break
        indices[repeats] = draw(int(repeats.sum()))
    scores = generator.standard_normal((queries, CANDIDATES), dtype=np.float32)
    return indices, -np.sort(-scores, axis=1)


def measure(queries: int, gallery: str, confidence: str, max_shift: int) -> tuple[float, float, int]:
    """Seconds, peak MiB and moves of one call of `sca_rerank`."""
    from tpas.sca import sca_rerank

    indices, scores = ranked_lists(queries, gallery)
    start = time.process_time()
    result = sca_rerank(indices, scores, confidence=confidence, max_shift=max_shift)
    seconds = time.process_time() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, result.report.moves


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time and memory of SCA, and how they grow.")
    parser.add_argument("--queries", type=int, nargs="+", default=[125_000, 250_000, 500_000, 1_000_000])
    parser.add_argument("--galleries", nargs="+", choices=CROWDING, default=list(CROWDING))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2,000 queries, one gallery: shows that it runs")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.queries, arguments.repeats = [1_000, 2_000], 1
        arguments.galleries = arguments.galleries[:1]

    print(f"{CANDIDATES} candidates a query, medians of {arguments.repeats}; load {os.getloadavg()[0]:.1f}")
    print(f"{'':16} {'queries':>10} {'seconds':>8} {'us/query':>9} {'growth':>7} {'MiB':>6} {'moves':>10}")
    settings = product(arguments.galleries, ("score", "softmax", "margin"), (1, CANDIDATES - 1))
    context = get_context("spawn")
    rows = []
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as executor:
        for gallery, confidence, max_shift in settings:
            runs = {queries: [] for queries in sorted(arguments.queries)}
            for _ in range(arguments.repeats):
                for queries, results in runs.items():
                    call = (measure, queries, gallery, confidence, max_shift)
                    results.append(executor.submit(*call).result())
            smallest = None
            for queries, results in runs.items():
                seconds, memory, moves = map(statistics.median, zip(*results, strict=True))
                each = 1e6 * seconds / queries
                smallest = smallest or each
                print(
                    f"{gallery + ' ' + confidence:14} {max_shift} {queries:>10,} {seconds:>8.2f} {each:>9.2f}"
                    f" {each / smallest:>7.2f} {memory:>6.0f} {moves:>10,.0f}",
                    flush=True,
                )
            row = {"gallery": gallery, "confidence": confidence, "max_shift": max_shift, "queries": queries}
            row |= {"microseconds_per_query": each, "growth": each / smallest, "peak_mib": memory}
            rows.append(row)
    if arguments.output:
        # Without `tpas.evaluation`, whose imports would be in the time and memory of every run.
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
