"""Runs the benchmarks of speed and memory one after another, and prints one table of their main figures.

    make bench
    python benchmarks/speed_and_memory.py --quick                  # everything tiny: shows that it runs
    python benchmarks/speed_and_memory.py --only rerank encoding

Each is the script of that name with moderate settings, in a process of its own; those say what is measured,
and how. A ratio above 1 is in our favour, and where the script repeats, it is the median of the repeats'
ratios, not the quotient of the two figures beside it. Shares are of the fastest GEMM measured in the same
run; embedding search may be bound by the memory's bandwidth instead. What the scripts write is kept in
`--output_dir`, with the table as summary.json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# Moderate settings; the scripts' own defaults are what a report should quote.
SETTINGS = {
    "encoding": ["--images", "8"],
    "embedding_search": ["--repeats", "5"],
    "rerank": [],
    "sca_scale": ["--queries", "100000", "400000", "--repeats", "1"],
    "training_step": ["--repeats", "3"],
    "gallery_memory": ["--pictures", "8192"],
}


@dataclass(frozen=True)
class Row:
    """One line of the table; None where a benchmark has no such figure.

    Attributes:
        baseline, baseline_value: what it is compared with, and its figure in the same unit.
        ratio: how many times better the figure is.
        share_of_limit: of what the machine was measured to be capable of, from 0 to 1.
    """

    figure: str
    value: float
    unit: str
    baseline: str | None = None
    baseline_value: float | None = None
    ratio: float | None = None
    share_of_limit: float | None = None


def rows_of(benchmark: str, result: dict[str, Any]) -> list[Row]:
    """The main figures in what a benchmark wrote to its `--output`."""
    return list(READERS[benchmark](result))


def encoding_rows(result: dict[str, Any]) -> Iterator[Row]:
    for kind, engine in (("image", "engine, 2 a pass"), ("text", "engine, 24 a pass")):
        rows = result["rows"][kind]
        row, baseline = rows[engine], next(iter(rows))  # the first is the straightforward one
        yield Row(
            f"encoding {kind}s, {engine}",
            row["items_per_second"],
            f"{kind}s/s",
            baseline,
            rows[baseline]["items_per_second"],
            row["times_faster_than"][baseline],
            row["share_of_gemm_limit"],
        )


def embedding_search_rows(result: dict[str, Any]) -> Iterator[Row]:
    rows = {row["name"]: row for row in result["exact"]["rows"]}
    for name in ("ours", "ours, shards of 512"):
        yield Row(
            f"search of {result['pictures']:,} embeddings, {name}",
            1e3 * rows[name]["seconds"],
            "ms",
            "faiss flat",
            1e3 * rows["faiss flat"]["seconds"],
            rows[name]["times_faiss"],
            rows[name]["share_of_limit"],
        )


def rerank_rows(result: dict[str, Any]) -> Iterator[Row]:
    rows = result["rows"]
    for name in ("engine fp32", "engine bf16"):
        yield Row(
            f"re-ranking, {name}",
            rows[name]["pairs_per_second"],
            "pairs/s",
            "upstream's schedule",
            rows["upstream"]["pairs_per_second"],
            rows[name]["times_upstream"],
            rows[name]["share_of_gemm_limit"],
        )


def sca_scale_rows(result: dict[str, Any]) -> Iterator[Row]:
    for row in result["rows"]:
        if row["confidence"] != "score":  # the default; the others are in the script's own table
            continue
        yield Row(
            f"SCA of {row['queries']:,} queries, {row['gallery']}, max_shift {row['max_shift']}",
            row["microseconds_per_query"],
            "us/query",
            "fewest queries",
            row["microseconds_per_query"] / row["growth"],
            1 / row["growth"],
        )


def training_step_rows(result: dict[str, Any]) -> Iterator[Row]:
    times, memory, pairs = result["times"], result["memory_gb"], result["settings"]["pairs"]
    ours, theirs = times["ours_seconds"], times["upstream_seconds"]
    yield Row(f"training step of {pairs} pairs", ours, "s", "upstream's schedule", theirs, times["ratio"])
    whole, *options = memory
    yield Row(f"training memory, {whole}", memory[whole], "GB")
    for option in options:
        ratio = memory[whole] / memory[option]
        yield Row(f"training memory, {option}", memory[option], "GB", whole, memory[whole], ratio)


def gallery_memory_rows(result: dict[str, Any]) -> Iterator[Row]:
    yield Row(
        f"peak memory, search of {result['pictures']:,} pictures",
        result["search"] / 1024,
        "GiB",
        "imports, narrow model",
        result["imports_and_model"] / 1024,
    )


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
        RuntimeError: it failed.
    """
    settings = ["--quick"] if quick else SETTINGS[benchmark]
    command = [sys.executable, FOLDER / f"{benchmark}.py", *settings, "--output", output]
    code = subprocess.run(command, stdout=sys.stderr).returncode
    if code:
        raise RuntimeError(f"benchmarks/{benchmark}.py ended with code {code}: see its messages above")
    return json.loads(output.read_text(encoding="utf-8"))


def table(rows: list[Row]) -> str:
    def number(value: float | None, unit: str) -> str:
        return "" if value is None else f"{value:,.{2 if value < 10 else 1}f} {unit}"

    width = max(len(row.figure) for row in rows)
    lines = [f"{'figure':{width}}{'':>18}  {'baseline':24}{'':>18}{'ratio':>8}{'of limit':>10}"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        share = "" if row.share_of_limit is None else f"{row.share_of_limit:.0%}"
        lines.append(
            f"{row.figure:{width}}{number(row.value, row.unit):>18}  {row.baseline or '':24}"
            f"{number(row.baseline_value, row.unit):>18}{ratio:>8}{share:>10}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="BENCHMARK")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/bench"), help="default: outputs/bench"
    )
    parser.add_argument("--quick", action="store_true", help="everything tiny, to show that they run")
    arguments = parser.parse_args(argv)
    rows = []
    for benchmark in arguments.only:
        print(f"{benchmark} ...", file=sys.stderr, flush=True)
        try:
            result = run(benchmark, arguments.quick, arguments.output_dir / f"{benchmark}.json")
        except RuntimeError as error:
            raise SystemExit(f"speed_and_memory.py: {error}") from error
        rows += rows_of(benchmark, result)
    content = json.dumps([asdict(row) for row in rows], indent=1)
    (arguments.output_dir / "summary.json").write_text(content + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
