"""Runs the benchmarks of speed and memory one after another, and prints one table of their main figures.

    make bench
    python benchmarks/speed_and_memory.py --quick                  # everything tiny: shows that it runs
    python benchmarks/speed_and_memory.py --only rerank encoding

Each is the script of that name with moderate settings, in a process of its own; those say what is measured,
and how. One that fails or takes too long is named below the table with the reason, the others go on, and the
exit code is 1. A ratio above 1 is in our favour, and where the script repeats, it is the median of the
repeats' ratios, not the quotient of the two figures beside it. Shares are of the fastest GEMM measured in the
same run, and "at limit" is the ratio of an engine that did its linear layers at that limit and the rest in no
time; embedding search may be bound by the memory's bandwidth instead. What the scripts write is kept in
`--output_dir`, with the table and the reasons as summary.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# Moderate settings; the scripts' own defaults are what a report should quote.
SETTINGS = {
    "encoding": ["--images", "8"],
    "embedding_search": ["--repeats", "5"],
    "rerank": ["--queries", "7", "--shortlist", "48", "--test_pairs", "50"],
    "sca_scale": ["--queries", "100000", "400000", "--repeats", "1"],
    "training_step": ["--pairs", "2", "--repeats", "3"],
    "gallery_memory": ["--images", "4096"],
}
LONGEST = 600  # seconds of one script


@dataclass(frozen=True)
class Row:
    """One line of the table; None where a benchmark has no such figure.

    Attributes:
        baseline, baseline_value: what it is compared with, and its figure in the same unit.
        ratio: how many times better the figure is.
        share_of_limit: of what the machine was measured to be capable of, from 0 to 1.
        ratio_at_limit: what the ratio would be with linear layers at that limit, and nothing else.
    """

    figure: str
    value: float
    unit: str
    baseline: str | None = None
    baseline_value: float | None = None
    ratio: float | None = None
    share_of_limit: float | None = None
    ratio_at_limit: float | None = None


def rows_of(benchmark: str, result: dict[str, Any]) -> list[Row]:
    """The main figures in what a benchmark wrote to its `--output`."""
    return list(READERS[benchmark](result))


def encoding_rows(result: dict[str, Any]) -> Iterator[Row]:
    for kind, rows in result["rows"].items():
        for name in ("engine fp32", "engine bf16"):
            yield engine_row(f"encoding {kind}s, {name}", f"{kind}s/s", "model", rows["model"], rows[name])


def engine_row(figure: str, unit: str, baseline: str, straightforward: dict, engine: dict) -> Row:
    """From what `measuring.Comparison.row` gives for both."""
    ratios = (engine[name] for name in ("times_faster", "share_of_gemm_limit", "times_faster_at_the_limit"))
    rates = engine["items_per_second"], straightforward["items_per_second"]
    return Row(figure, rates[0], unit, baseline, rates[1], *ratios)


def embedding_search_rows(result: dict[str, Any]) -> Iterator[Row]:
    rows = {row["name"]: row for row in result["exact"]["rows"]}
    for name in ("ours", "ours, shards of 512", "ours, first queries"):
        own, faiss = rows[name], 1e3 * rows["faiss flat"]["seconds"]
        figure = f"search of {result['images']:,} embeddings, {name}"
        ratios = own["times_faiss"], own["share_of_limit"]
        yield Row(figure, 1e3 * own["seconds"], "ms", "faiss flat", faiss, *ratios)


def rerank_rows(result: dict[str, Any]) -> Iterator[Row]:
    rows = result["rows"]
    for name in ("engine fp32", "engine bf16"):
        baseline = "upstream's schedule", rows["upstream"]
        yield engine_row(f"re-ranking, {name}", "pairs/s", *baseline, rows[name])


def sca_scale_rows(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["rows"]:
        if row["confidence"] != "score":  # the default; the others are in the script's own table
            continue
        figure = f"SCA of {row['queries']:,} queries, {row['gallery']}, max_shift {row['max_shift']}"
        own, growth = row["microseconds_per_query"], row["growth"]
        yield Row(figure, own, "us/query", "fewest queries", own / growth, 1 / growth)


def training_step_rows(result: dict[str, Any]) -> Iterator[Row]:
    times, memory, pairs = result["times"], result["memory_gb"], result["settings"]["pairs"]
    upstream = next(iter(times))  # also the first of the memory
    for name in ("fp32", "bf16"):
        seconds = times[name]["seconds"], times[upstream]["seconds"]
        figure = f"training step of {pairs} pairs, {name}"
        yield Row(figure, seconds[0], "s", upstream, seconds[1], times[name]["ratio"])
    for option in list(memory)[1:]:
        figure = f"training memory, {option}", memory[option], "GB"
        yield Row(*figure, upstream, memory[upstream], memory[upstream] / memory[option])


def gallery_memory_rows(result: dict[str, Any]) -> Iterator[Row]:
    figure = f"peak memory, search of {result['images']:,} images"
    imports = result["imports_and_model"] / 1024
    yield Row(figure, result["search"] / 1024, "GiB", "imports, narrow model", imports)


READERS = {
    "encoding": encoding_rows,
    "embedding_search": embedding_search_rows,
    "rerank": rerank_rows,
    "sca_scale": sca_scale_rows,
    "training_step": training_step_rows,
    "gallery_memory": gallery_memory_rows,
}


def run(benchmark: str, quick: bool, output: Path) -> dict[str, Any]:
    """What the benchmark writes; what it prints goes to stderr.

    Raises:
        RuntimeError: it failed or took too long.
    """
    settings = ["--quick"] if quick else SETTINGS[benchmark]
    command = [sys.executable, FOLDER / f"{benchmark}.py", *settings, "--output", output]
    output.unlink(missing_ok=True)
    # In a process group of its own, so that what it started is stopped with it.
    pipes = {"stdout": sys.stderr, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    timer = threading.Timer(LONGEST, os.killpg, (process.pid, signal.SIGKILL))
    started = time.monotonic()
    timer.start()
    last = ""
    try:
        for line in process.stderr:
            sys.stderr.write(line)
            last = line.strip() or last
        process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:  # interrupted
            os.killpg(process.pid, signal.SIGKILL)
    if time.monotonic() - started >= LONGEST:
        raise RuntimeError(f"stopped after {LONGEST} s")
    if process.returncode:
        raise RuntimeError(f"ended with code {process.returncode}: {last}")
    return json.loads(output.read_text(encoding="utf-8"))


def table(rows: list[Row]) -> str:
    def number(value: float | None, unit: str) -> str:
        return "" if value is None else f"{value:,.{2 if value < 10 else 1}f} {unit}"

    width = max((len(row.figure) for row in rows), default=0)
    heads = f"{'ratio':>8}{'of limit':>10}{'at limit':>10}"
    lines = [f"{'figure':{width}}{'':>18}  {'baseline':24}{'':>18}{heads}"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        share = "" if row.share_of_limit is None else f"{row.share_of_limit:.0%}"
        bound = "" if row.ratio_at_limit is None else f"{row.ratio_at_limit:.2f}"
        line = f"{row.figure:{width}}{number(row.value, row.unit):>18}  {row.baseline or '':24}"
        line += f"{number(row.baseline_value, row.unit):>18}{ratio:>8}{share:>10}{bound:>10}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="BENCHMARK")
    output_dir = Path("outputs/bench")
    parser.add_argument("--output_dir", type=Path, default=output_dir, help="default: outputs/bench")
    parser.add_argument("--quick", action="store_true", help="everything tiny, to show that they run")
    arguments = parser.parse_args(argv)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    rows, failures = [], {}
    for benchmark in arguments.only:
        print(f"{benchmark} ...", file=sys.stderr, flush=True)
        try:
            result = run(benchmark, arguments.quick, arguments.output_dir / f"{benchmark}.json")
        except RuntimeError as error:
            failures[benchmark] = str(error)
        else:
            rows += rows_of(benchmark, result)
    content = {"rows": [asdict(row) for row in rows], "failures": failures}
    summary = arguments.output_dir / "summary.json"
    summary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(rows))
    for benchmark, reason in failures.items():
        print(f"benchmarks/{benchmark}.py {reason}")
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
