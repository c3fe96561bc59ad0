"""`tpas serve` under load on loopback: how fast, how steady, and what a stop and a kill leave.

    python benchmarks/service.py --output benchmarks/service.json

Serves 300 drawn people with `demo_start`, twice: questions of several clients in one pass, and each by
itself. 1, 8 and 32 clients, each with a connection of its own, ask one text after the other, both servers in
turn, so that what else the machine does falls on both. Then 10,000 searches without re-ranking, and the
server's memory before and after; silent connections beside a client that asks; SIGTERM and SIGKILL under
load: of each answer that arrived the audit log has to hold the line. On two idle cores it takes three
minutes, on busy ones eight; more `--rounds` and `--requests` give steadier tails. `--quick` only shows that
it runs.
"""

import argparse
import http.client
import itertools
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from drawn_people import DEMO_START
from measuring import add_output_arguments, machine, machine_name, markdown_table, write_output

from tpas.data.drawn.synthetic_pab import draw_pab
from tpas.models.loading import load_model
from tpas.search.gallery import Gallery
from tpas.service.audit import verify

CLIENTS = (1, 8, 32)
WORDS = (
    ("a man", "a woman", "a child", "somebody"),
    ("in red", "in blue", "with a hat"),
    ("runs", "falls", "sits"),
)
SILENT = 200


class Server:
    """A running `tpas serve`."""

    def __init__(self, gallery: Path, audit: Path, texts_a_pass: int = 64):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = ["serve", f"people={gallery}", "--model", str(DEMO_START), "--port", str(self.port)]
        words += ["--audit", str(audit), "--texts_a_pass", str(texts_a_pass)]
        with audit.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "tpas", *words], stderr=log)
        for _ in range(3_000):
            try:
                if self.get("/ready")[0] == 200:
                    return
            except OSError:
                assert self.process.poll() is None, "the server has ended"
            time.sleep(0.1)

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def figure(self, name: str) -> float:
        """Of its metrics."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.split()[0] == name)

    def end(self, by: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(by)
        return self.process.wait(60)


@contextmanager
def serving(*arguments: Any) -> Iterator[Server]:
    server = Server(*arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()


class Load:
    """Clients that ask until `requests` were answered or `stop` is set.

    Attributes:
        seconds: of each answer with status 200.
        answered: the texts of these.
        refused: the statuses of others, and how often; 0: the connection was broken off or refused.
    """

    def __init__(self, server: Server, clients: int, requests: int, rerank: bool = True):
        self.server, self.rerank = server, rerank
        self.numbers, self.requests = itertools.count(), requests
        self.seconds: list[float] = []
        self.answered: list[str] = []
        self.refused: dict[int, int] = {}
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self.began = time.perf_counter()
        for thread in self.threads:
            thread.start()

    def wait(self) -> float:
        """Seconds until all had their answers."""
        for thread in self.threads:
            thread.join()
        return time.perf_counter() - self.began

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        while not self.stop.is_set() and (number := next(self.numbers)) < self.requests:
            who, looks, does = (words[number // 7**place % len(words)] for place, words in enumerate(WORDS))
            text = f"{who} {looks} {does}, {number}"
            body = json.dumps({"texts": [text], "rerank": None if self.rerank else False})
            began = time.perf_counter()
            try:
                connection.request("POST", "/v1/search", body)
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            if status == 200:
                self.seconds.append(time.perf_counter() - began)
                self.answered.append(text)
            else:
                self.refused[status] = self.refused.get(status, 0) + 1
                time.sleep(0.05)
                if status == 0 and self.server.process.poll() is not None:
                    return


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))]


def speed(servers: dict[str, Server], rounds: int, requests: int) -> dict[str, Any]:
    """By clients and server: searches a second, the median of rounds; p50 and p99 of all answers, in ms."""
    figures: dict[str, Any] = {}
    for server in servers.values():  # not timed: oneDNN compiles for each number of rows it meets
        Load(server, 32, 16 * requests).wait()
    for clients in CLIENTS:
        rates: dict[str, list[float]] = {name: [] for name in servers}
        seconds: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, server in servers.items():
                load = Load(server, clients, requests * min(clients, 8))
                took = load.wait()
                rates[name].append(len(load.seconds) / took)
                assert not load.refused, load.refused
                seconds[name] += load.seconds
        figures[str(clients)] = {
            name: {
                "searches_per_second": statistics.median(rates[name]),
                "p50_ms": 1000 * percentile(seconds[name], 0.5),
                "p99_ms": 1000 * percentile(seconds[name], 0.99),
            }
            for name in servers
        } | {"times_faster": statistics.median(a / b for a, b in zip(*rates.values(), strict=True))}
        print(clients, figures[str(clients)], file=sys.stderr, flush=True)
    return figures


def memory(server: Server, requests: int) -> dict[str, float]:
    """MiB of the server after a tenth of the searches and after all."""
    Load(server, 8, requests // 10, rerank=False).wait()
    before = server.figure("process_resident_memory_bytes")
    load = Load(server, 8, requests - requests // 10, rerank=False)
    took = load.wait()
    after = server.figure("process_resident_memory_bytes")
    figures = {"requests": requests, "after_a_tenth_mib": before / 2**20, "after_all_mib": after / 2**20}
    return figures | {"searches_per_second": len(load.seconds) / took, "refused": sum(load.refused.values())}


def beside_silent_clients(server: Server) -> dict[str, Any]:
    """What a client gets while others hold connections and say nothing, or half a request."""
    with ExitStack() as stack:
        for number in range(SILENT):
            silent = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            silent.sendall(b"POST /v1/search HTTP/1.1\r\nHost: " if number % 2 else b"")
        load = Load(server, 1, 5)
        load.wait()
    return {"silent": SILENT, "answered": len(load.seconds), "refused": load.refused}


def ended_under_load(gallery: Path, audit: Path, by: signal.Signals, seconds: float) -> dict[str, Any]:
    """What arrived, and whether the audit log holds a line of each; started once more on the same log."""
    with serving(gallery, audit) as server:
        load = Load(server, 8, 10**9)
        time.sleep(seconds)
        began = time.perf_counter()
        code = server.end(by)
        took = time.perf_counter() - began
        load.stop.set()
        load.wait()
    with serving(gallery, audit):
        pass
    lines = [json.loads(line) for line in audit.read_bytes().splitlines()]
    logged = {text for line in lines for text in line.get("texts", ())}
    torn = sum(line.get("set_aside", 0) for line in lines)
    return {
        "answered": len(load.answered),
        "without_a_line": len(set(load.answered) - logged),
        "refused": load.refused,
        "exit_code": code,
        "seconds_to_end": took,
        "problem_of_the_log": verify(audit).problem,
        "torn_bytes": torn,
    }


def table(figures: dict[str, Any]) -> str:
    heads = (
        "clients",
        "together: searches/s",
        "p50 ms",
        "p99 ms",
        "each alone: searches/s",
        "p50 ms",
        "p99 ms",
        "times",
    )
    rows = []
    for clients, of in figures["speed"].items():
        cells = [clients]
        for name in ("together", "alone"):
            cells += [f"{of[name]['searches_per_second']:.1f}"]
            cells += [f"{of[name][share]:.0f}" for share in ("p50_ms", "p99_ms")]
        rows.append([*cells, f"{of['times_faster']:.2f}"])
    kept, silent = figures["memory"], figures["silent"]
    lines = [
        "# `tpas serve` under load",
        "",
        f"By `python benchmarks/service.py`: {figures['machine']['of']}.",
        "",
    ]
    lines += markdown_table(heads, rows)
    lines += [
        "",
        f"Memory: {kept['after_a_tenth_mib']:.0f} MiB after {kept['requests'] // 10:,} searches, "
        f"{kept['after_all_mib']:.0f} MiB after {kept['requests']:,} (without re-ranking, "
        f"{kept['searches_per_second']:.0f} a second).",
        "",
        f"{silent['silent']} silent connections beside a client: {silent['answered']} of 5 searches answered",
        "",
        *markdown_table(
            (
                "ended by",
                "answers that arrived",
                "of these not in the audit log",
                "log",
                "torn bytes",
                "seconds",
            ),
            [
                [
                    *(
                        by,
                        str(of["answered"]),
                        str(of["without_a_line"]),
                        of["problem_of_the_log"] or "whole",
                    ),
                    *(str(of["torn_bytes"]), f"{of['seconds_to_end']:.1f}"),
                ]
                for by, of in figures["ended"].items()
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="default: 2")
    parser.add_argument("--requests", type=int, default=8, help="of a client in a round (default: 8)")
    parser.add_argument("--of_memory", type=int, default=10_000, help="searches (default: 10,000)")
    add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    rounds, requests, of_memory = arguments.rounds, arguments.requests, arguments.of_memory
    if arguments.quick:
        rounds, requests, of_memory = 1, 2, 40
    figures: dict[str, Any] = {"machine": machine(False) | {"of": machine_name()}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = draw_pab(folder / "pab", train_pairs=2, test_pairs=300, workers=1)
        gallery = Gallery.build(*load_model(str(DEMO_START)), root / "test", folder / "gallery").path
        with (
            serving(gallery, folder / "a.jsonl") as together,
            serving(gallery, folder / "b.jsonl", 1) as alone,
        ):
            figures["speed"] = speed({"together": together, "alone": alone}, rounds, requests)
            figures["silent"] = beside_silent_clients(together)
            figures["memory"] = memory(together, of_memory)
        seconds = 1.0 if arguments.quick else 10.0
        figures["ended"] = {
            by.name: ended_under_load(gallery, folder / f"{by.name}.jsonl", by, seconds)
            for by in (signal.SIGTERM, signal.SIGKILL)
        }
    print(table(figures))
    write_output(arguments.output, figures, table(figures))


if __name__ == "__main__":
    main()
