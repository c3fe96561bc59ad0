"""The server below page and service: who says nothing is let go, and what was accepted is answered."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import pytest

pytest.importorskip("gradio", reason="the extra `app` is not installed")

import httpx  # noqa: E402 (comes with the extra, as these do)
import uvicorn  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402

from tpas.search_page import serving  # noqa: E402
from tpas.search_page.access import AllowedHosts, check_tls  # noqa: E402
from tpas.service.gate import Gate, Rules  # noqa: E402


@contextmanager
def running(app):
    """A server of an application behind the gate in a thread: it, and its address."""
    gate = Gate(app, Rules(AllowedHosts("127.0.0.1")), lambda *_: None)
    listening = socket.create_server(("127.0.0.1", 0))
    settings = {"log_config": None, "http": serving.PatientProtocol, "lifespan": "off", "ws": "none"}
    server = serving._Server(uvicorn.Config(gate, **settings), "running", gate.drain)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def test_a_stop_answers_what_was_accepted_and_nothing_new():
    taken, goes_on = threading.Event(), threading.Event()

    async def slow(scope, receive, send):
        while scope["path"] == "/v1/slow" and not goes_on.is_set():
            taken.set()
            await asyncio.sleep(0.01)
        await PlainTextResponse("done")(scope, receive, send)

    answers = []
    with running(slow) as (server, address), httpx.Client(base_url=address) as other:
        asking = threading.Thread(target=lambda: answers.append(httpx.get(f"{address}/v1/slow")))
        assert other.get("/v1/quick").text == "done"  # and keeps its connection
        asking.start()
        assert taken.wait(5)
        server.should_exit = True
        while not server.servers or server.servers[0].is_serving():
            pass
        refused = other.get("/v1/more")
        assert (refused.status_code, refused.json()) == (503, {"error": "the server is stopping"})
        goes_on.set()
        asking.join(5)
    assert answers[0].text == "done"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/v1/slow")


def test_files_that_are_no_certificate_and_its_key_are_named(tmp_path):
    for name in ("certificate.pem", "key.pem"):
        (tmp_path / name).write_text("no PEM")
    with pytest.raises(OSError, match=r"no TLS by .*certificate.pem and .*key.pem: .*PEM"):
        check_tls(tmp_path / "certificate.pem", tmp_path / "key.pem")
    with pytest.raises(OSError, match=r"no TLS by .*nowhere.pem and .*: No such file or directory"):
        check_tls(tmp_path / "nowhere.pem", tmp_path / "key.pem")


def test_a_connection_that_says_nothing_is_closed(monkeypatch):
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.1)

    async def answer(scope, receive, send):
        await asyncio.sleep(0.3)  # longer than a head may take
        await PlainTextResponse("done")(scope, receive, send)

    with running(answer) as (_, address):
        place = "127.0.0.1", int(address.rpartition(":")[2])
        for begun in (b"", b"GET / HTTP/1.1\r\nHost: "):  # nothing at all, and half a head
            with socket.create_connection(place, timeout=5) as silent:
                silent.sendall(begun)
                assert silent.recv(100) == b""
        assert httpx.get(f"{address}/v1/x").text == "done"
        monkeypatch.setattr(serving.PatientProtocol, "most", 0)
        with socket.create_connection(place, timeout=5) as one_too_many:
            assert one_too_many.recv(100) == b""


def test_who_does_not_read_the_answer_is_let_go(monkeypatch):
    monkeypatch.setattr(serving, "READ_SECONDS", 0.1)
    content = b"x" * 2**25  # more than the system keeps for a connection

    async def answer(scope, receive, send):
        await PlainTextResponse(content if scope["path"] == "/v1/all" else "done")(scope, receive, send)

    with running(answer) as (server, address):
        place = "127.0.0.1", int(address.rpartition(":")[2])
        with socket.create_connection(place, timeout=5) as silent:
            silent.sendall(b"GET /v1/all HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert silent.recv(8) == b"HTTP/1.1"
            until = time.monotonic() + 5
            while server.server_state.connections and time.monotonic() < until:
                time.sleep(0.02)
            assert not server.server_state.connections
        assert httpx.get(f"{address}/v1/all").content == content  # who reads gets all of it
        assert httpx.get(f"{address}/v1/x").text == "done"


def test_connections_do_not_use_up_the_files(monkeypatch):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (800, before[1]))
        monkeypatch.setattr(serving, "CONNECTIONS", 250)
        assert serving.open_more_files() == 250
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1_000
        monkeypatch.setattr(resource, "getrlimit", lambda _: (1_000, 1_000))  # no more can be had
        monkeypatch.setattr(serving, "CONNECTIONS", 10_000)
        assert serving.open_more_files() == 500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
