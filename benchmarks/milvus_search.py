"""A Milvus server that is filled with a gallery of 1,000,000 made embeddings, asked by many, and killed.

    python benchmarks/milvus_search.py --output benchmarks/milvus_search.json    # half an hour on two cores

Starts the server itself, in a folder that goes at the end (some 10 GB), fills it by `tpas gallery index`, and
prints Markdown. Clients are threads of this process, on the same machine; each asks one text at a time, as a
search does: the database finds candidates, the embeddings on disk score them.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import measuring
from made_gallery import CAMERAS, STARTED_AT, made_queries, make_gallery
from milvus_server import OwnServer
from pymilvus import MilvusException
from torch import Tensor

from tpas.search.gallery import Gallery
from tpas.search.image_tokens import ImageTokens
from tpas.search.indexes import open_index
from tpas.search.manifest import GalleryError
from tpas.search.milvus_index import MilvusIndex, RowsOfDatabase
from tpas.search.selection import Selection
from tpas.search.stored_gallery import StoredGallery

BEST = 10
CLIENTS = (1, 8, 32)
COUNTS = (10, 20, 64, 128, 512)
SHORTLIST = 128
SECONDS_TO_INDEX = 900  # then what is not indexed yet is searched as it is
TEXTS = 64  # whose recall is measured
Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class Shown(dict[str, Any]):
    """Shows what is measured as it comes: the whole takes long."""

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        print(f"{name}: {value}", file=sys.stderr, flush=True)


def index_command(gallery: StoredGallery, address: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tpas", "gallery", "index", str(gallery.directory), "--index", address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def filled(gallery: StoredGallery, address: str) -> float:
    """Seconds of `tpas gallery index`."""
    began = time.monotonic()
    command = index_command(gallery, address)
    said, _ = command.communicate()
    if command.returncode:
        raise RuntimeError(said)
    return time.monotonic() - began


def asked_by(
    clients: int, searches: int, queries: Tensor, opened: Sequence[Search], count: int
) -> dict[str, float]:
    """Latencies of single texts, asked by so many at once; each thread has a `Search` of its own."""
    seconds: list[float] = []

    def ask(number: int) -> None:
        for turn in range(searches):
            query = queries[(number * searches + turn) % len(queries)][None]
            began = time.perf_counter()
            opened[number](query, count)
            seconds.append(time.perf_counter() - began)

    opened[0](queries[:1], count)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - began
    percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "p50_ms": 1e3 * percentiles[49],
        "p99_ms": 1e3 * percentiles[98],
        "searches_a_second": len(seconds) / whole,
    }


def recall(rows: Tensor, best: Tensor) -> float:
    """The share of the exact `best` (Q, 10) that is among the first 10 of `rows` (Q, K)."""
    kept = [len({*own[:BEST].tolist()} & {*right.tolist()}) for own, right in zip(rows, best, strict=True)]
    return sum(kept) / best.numel()


def seconds_to_index(index: MilvusIndex, images: int, longest: float) -> float | None:
    """Until the server has indexed all that it was given; None: not in so long."""
    began = time.monotonic()
    while time.monotonic() - began < longest:
        if index.client.describe_index(index.collection, "embedding")["indexed_rows"] >= images:
            return time.monotonic() - began
        time.sleep(2)
    return None


def killed_while_asked(
    server: OwnServer, indexes: Sequence[MilvusIndex], queries: Tensor, truth: Tensor
) -> dict[str, Any]:
    """8 clients ask on while the server is killed, and 5 s later started again."""
    killed_at = ready_at = 0.0
    errors: set[str] = set()
    waits: list[float] = []
    back: dict[int, float] = {}
    ended = threading.Event()

    def ask(number: int) -> None:
        while not ended.is_set() and number not in back:
            began = time.monotonic()
            try:
                indexes[number].search(queries[:4], BEST)
            except GalleryError as error:
                errors.add(str(error)[:120])
                waits.append(time.monotonic() - began)
                time.sleep(0.2)
            else:
                if ready_at and began > ready_at:
                    back[number] = time.monotonic() - ready_at

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(indexes))]
    for thread in threads:
        thread.start()
    time.sleep(2)
    server.kill()
    killed_at = time.monotonic()
    time.sleep(5)
    started = server.start()
    ready_at = time.monotonic()
    for thread in threads:
        thread.join(timeout=max(1.0, killed_at + 300 - time.monotonic()))
    ended.set()
    return {
        "seconds_to_start": started,
        "seconds_until_all_are_answered": max(back.values()) if len(back) == len(indexes) else None,
        "recall_at_10": recall(indexes[0].search(queries, SHORTLIST)[0], truth),
        "errors": sorted(errors),
        "longest_wait_for_an_error": max(waits, default=0.0),
    }


def killed_while_filled(server: OwnServer, gallery: StoredGallery, who: str) -> dict[str, Any]:
    """`who`, "server" or "command", is killed after a third of the gallery; the same command is run again."""
    command = index_command(gallery, server.address)
    probe = MilvusIndex(server.address, gallery, open_index("exact", gallery))
    there = 0
    while there < len(gallery) / 3 and command.poll() is None:
        time.sleep(0.2)
        with contextlib.suppress(MilvusException):  # it is not made yet, or not loaded
            there = _rows_there(probe)
    began = time.monotonic()
    if who == "server":
        server.kill()
        server.start()
    else:
        command.kill()
    said, _ = command.communicate()
    code, took = command.returncode, time.monotonic() - began
    try:
        open_index(server.address, gallery)
        refusal = None
    except GalleryError as error:
        refusal = str(error)
    probe.client.load_collection(probe.collection)
    resumed_from = _rows_there(probe)
    again = filled(gallery, server.address)
    queries = made_queries(20, len(gallery))
    rows, _ = open_index(server.address, gallery).search(queries, SHORTLIST)
    truth, _ = open_index("exact", gallery).search(queries, BEST)
    return {
        "rows_at_the_kill": there,
        "exit_code": code,
        "seconds_until_it_ended": took,
        "said": said.strip().splitlines()[-1:],
        "refused_before_the_next": refusal,
        "rows_before_the_next": resumed_from,
        "seconds_of_the_next": again,
        "rows_after_it": _rows_there(probe),
        "recall_at_10": recall(rows, truth),
    }


def _rows_there(index: MilvusIndex) -> int:
    (row,) = index.client.query(index.collection, filter="", output_fields=["count(*)"], timeout=60)
    return row["count(*)"]


def measure(folder: Path, images: int, searches: int) -> dict[str, Any]:
    gallery = make_gallery(folder / "gallery", images)
    server = OwnServer(folder / "server")
    result = Shown(images=images)
    try:
        result["start_seconds"] = server.start()
        result["empty_bytes"] = server.memory
        result["fill_seconds"] = filled(gallery, server.address)
        result["filled_bytes"] = server.memory
        index = open_index(server.address, gallery)
        assert isinstance(index, MilvusIndex)
        queries = made_queries(TEXTS, images)
        result["before_it_is_indexed"] = asked_by(1, searches, queries, [index.search], SHORTLIST)
        result["indexed_after_seconds"] = seconds_to_index(index, images, SECONDS_TO_INDEX)
        result["indexed_bytes"] = server.memory
        result["fill_again_seconds"] = filled(gallery, server.address)

        exact = open_index("exact", gallery)
        truth, _ = exact.search(queries, BEST)
        result["recall_at_10"] = {
            f"best {count}": recall(index.search(queries, count)[0], truth) for count in COUNTS
        }
        indexes = [open_index(server.address, gallery) for _ in range(max(CLIENTS))]
        began = time.monotonic()
        opened = Gallery.open(gallery.directory)
        result["open_seconds"] = time.monotonic() - began
        for name in ("filter_seconds", "filter_again_seconds"):  # the first reads the columns
            began = time.monotonic()
            of_camera = opened.rows_of_moments(f"camera{CAMERAS // 2:03d}")
            result[name] = time.monotonic() - began
        day = [f"{STARTED_AT[:8]}03{STARTED_AT[10:]}", f"{STARTED_AT[:8]}04{STARTED_AT[10:]}"]
        of_day = opened.rows_of_moments(None, *map(datetime.fromisoformat, day))
        of_day_exactly = Selection(ImageTokens(gallery), of_day).index.search(queries, BEST)
        of_day_found = RowsOfDatabase(index, of_day).search(queries, SHORTLIST)
        result["recall_at_10"]["one day"] = recall(of_day_found[0], of_day_exactly[0])

        def copied(rows: Tensor) -> Search:
            """As a gallery's search of few rows."""
            return lambda query, count: Selection(ImageTokens(gallery), rows).index.search(query, count)

        few, many = f"one camera, {len(of_camera):,} images", f"one day, {len(of_day):,} images"
        programs: dict[str, tuple[int, int, Sequence[Search]]] = {
            f"database, best {count}": (searches, count, [own.search for own in indexes])
            for count in (BEST, SHORTLIST)
        }
        by_day = [RowsOfDatabase(own, of_day).search for own in indexes]
        programs |= {
            f"database, {many}": (searches // 2, SHORTLIST, by_day),
            f"exactly, {many}": (searches // 4, SHORTLIST, [copied(of_day)] * max(CLIENTS)),
            f"exactly, {few}": (searches, SHORTLIST, [copied(of_camera)] * max(CLIENTS)),
            "exactly, all": (searches // 4, SHORTLIST, [exact.search] * max(CLIENTS)),
        }
        result["asked"] = {
            name: {
                str(clients): asked_by(clients, max(2, turns // clients), queries, opened_ones, count)
                for clients in CLIENTS
            }
            for name, (turns, count, opened_ones) in programs.items()
        }
        result["asked_bytes"] = server.memory
        result["killed_while_asked"] = killed_while_asked(server, indexes[:8], queries, truth)
        for who in ("server", "command"):
            small = make_gallery(folder / f"small_{who}", max(1, images // 25))
            result[f"{who}_killed_while_filled"] = killed_while_filled(server, small, who)
    finally:
        server.kill()
    return result


def markdown(result: dict[str, Any]) -> str:
    heads = ["a text", *(f"{clients} at once: p50, p99" for clients in CLIENTS), "texts/s"]
    rows = []
    for name, asked in result["asked"].items():
        times = [f"{asked[str(n)]['p50_ms']:,.0f}, {asked[str(n)]['p99_ms']:,.0f} ms" for n in CLIENTS]
        rows.append([name, *times, f"{max(own['searches_a_second'] for own in asked.values()):,.0f}"])
    found = result["recall_at_10"]
    waited, asked = result["before_it_is_indexed"], result["killed_while_asked"]
    indexed, back = result["indexed_after_seconds"], asked["seconds_until_all_are_answered"]
    memory = {name: result[f"{name}_bytes"] / 1e9 for name in ("empty", "filled", "indexed", "asked")}
    paragraphs = [
        f"{result['images']:,} embeddings of 256 dimensions of {CAMERAS} cameras; {result['machine']}.",
        f"Filled in {result['fill_seconds']:,.0f} s ({result['images'] / result['fill_seconds']:,.0f} a "
        f"second); indexed {'never' if indexed is None else f'{indexed:,.0f} s'} later (of "
        f"{SECONDS_TO_INDEX:,} s). Until then one client waited {waited['p50_ms']:,.0f} ms (p50), "
        f"{waited['p99_ms']:,.0f} ms (p99). With nothing to do the command takes "
        f"{result['fill_again_seconds']:,.0f} s. Resident memory of the server: "
        + ", ".join(f"{name} {size:.2f} GB" for name, size in memory.items())
        + f". The gallery was opened in {result['open_seconds']:.2f} s; to find a camera's rows in it took "
        f"{result['filter_seconds']:.2f} s at first, then {result['filter_again_seconds'] * 1e3:.1f} ms.",
        "\n".join(measuring.markdown_table(heads, rows)),
        "The share of the exact best 10 that is among the first 10 found, by how many the search is for:",
        "\n".join(measuring.markdown_table([*found], [[f"{own:.4f}" for own in found.values()]])),
        f"Killed (SIGKILL) while 8 clients asked, started again 5 s later: healthy after "
        f"{asked['seconds_to_start']:.0f} s, all clients answered "
        f"{'never' if back is None else f'{back:.0f} s'} after that, recall@10 {asked['recall_at_10']:.4f}; "
        f"no client waited longer than {asked['longest_wait_for_an_error']:.0f} s for an error.",
    ]
    for who in ("server", "command"):
        own = result[f"{who}_killed_while_filled"]
        paragraphs.append(
            f"The {who} killed while it was filled, at {own['rows_at_the_kill']:,} rows: the command ended "
            f"with {own['exit_code']} after {own['seconds_until_it_ended']:.0f} s; "
            f"{own['rows_before_the_next']:,} rows were there, a search was "
            f"{'refused' if own['refused_before_the_next'] else 'taken'}; the same command again took "
            f"{own['seconds_of_the_next']:.0f} s, {own['rows_after_it']:,} rows, recall@10 "
            f"{own['recall_at_10']:.4f}."
        )
    return "\n\n".join(paragraphs) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A Milvus server is filled, asked and killed.")
    parser.add_argument("--images", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--searches", type=int, default=96, help="by all clients of a row (default: 96)")
    parser.add_argument(
        "--processors", type=int, nargs="*", help="those that the server may use (default: all)"
    )
    parser.add_argument("--folder", type=Path, help="keep all there (default: nothing is kept)")
    measuring.add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    images = 20_000 if arguments.quick else arguments.images
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tpas-milvus-") as created:
        folder = arguments.folder or Path(created)
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(folder, images, 64 if arguments.quick else arguments.searches)
    loads = f"load {load:.0f} before and {os.getloadavg()[0]:.0f} after"
    result["machine"] = f"{len(os.sched_getaffinity(0))} processors for clients and server, {loads}"
    table = markdown(result)
    print(table)
    measuring.write_output(arguments.output, result, table)


if __name__ == "__main__":
    main()
