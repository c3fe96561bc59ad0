"""The server that the search page runs on, and who may reach it."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import fastapi
import gradio as gr
import uvicorn
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ..data.whole_files import WRITER, AlreadyHeldError, held_alone
from .access import AllowedHosts, client_key, space_host
from .clips import Clips
from .page import build_page, page_settings
from .request_limits import RequestLimits, most_upload_bytes
from .requests import SearchRequests
from .uploads import Uploads

logger = logging.getLogger(__name__)

PORTS = range(7860, 7960)
FOLDER = "tpas-app-"  # how those of running pages are called
KEEP_ALIVE_SECONDS, SHUTDOWN_SECONDS = 10, 1
HEAD_SECONDS = 30.0  # in which a connection has to say what it asks
READ_SECONDS, READ_BYTES = 30.0, 2**14  # who is answered has to read so much in this time
CONNECTIONS = 1_000  # at a time
BACKLOG = 128  # of these are taken at once, before those that are too many are closed


def serve(
    requests: SearchRequests,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    password: str | None = None,
    allowed_hosts: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Serves the page until it is interrupted.

    Args:
        host, password: as `access.check_access` returns them.
        port: as of `run`.
        allowed_hosts: names by which it answers beside its own.
        trusted_proxies: addresses and networks whose X-Forwarded-For is believed; nobody else's is.

    Raises:
        OSError: as of `run`.
    """

    def page(folder: Path) -> ASGIApp:
        uploads, clips = _uploads(folder, requests), Clips(folder / "clips", requests)
        return guarded_page(requests, uploads, host, password, allowed_hosts, trusted_proxies, clips)

    run(page, host, port, f"{len(requests.gallery)} images")


def run(
    build: Callable[[Path], ASGIApp],
    host: str,
    port: int | None,
    what: str,
    *,
    tls: tuple[Path, Path] | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serves an application until it is interrupted.

    Args:
        build: makes it; it has a folder of its own, which goes with this process.
        port: `None`: the first free one from $GRADIO_SERVER_PORT, or from 7860.
        what: is served, as the log says it.
        tls: the files of the certificate and of its key, which were checked: it then speaks HTTPS alone.
        drain: waits, once nobody new is let in, until what was accepted is answered.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    listening = _listen(host, port)
    PatientProtocol.most = open_more_files()
    # Uploads pass through a folder of this process, which goes with it, also where it is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    remove_folders_of_killed()
    with (
        tempfile.TemporaryDirectory(prefix=FOLDER) as folder,
        held_alone(Path(folder, WRITER)),
        suppress(KeyboardInterrupt),
    ):
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "gradio"))
        config = uvicorn.Config(
            build(Path(folder)),
            log_level="warning",
            log_config=None,
            http=PatientProtocol,
            ws="none",
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            ssl_certfile=tls and tls[0],
            ssl_keyfile=tls and tls[1],
        )
        address, number = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        scheme = "http" if tls is None else "https"
        message = f"{what} at {scheme}://{shown}:{number}/ (Ctrl+C ends it)"
        _Server(config, message, drain).run(sockets=[listening])


def _uploads(folder: Path, requests: SearchRequests) -> Uploads:
    """What a page keeps in a folder while it runs."""
    return Uploads(folder / "uploads", most_upload_bytes(requests.limits))


def remove_folders_of_killed() -> None:
    """What was uploaded to a page that was killed, and not read by then; of a living one it is locked."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with suppress(AlreadyHeldError, OSError):  # the latter of another user's
            if (folder / WRITER).is_file():
                with held_alone(folder / WRITER):
                    shutil.rmtree(folder)


def guarded_page(
    requests: SearchRequests,
    uploads: Uploads,
    host: str = "127.0.0.1",
    password: str | None = None,
    allowed_hosts: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
    clips: Clips | None = None,
) -> ASGIApp:
    """The page behind its limits, as an ASGI application; `host` is where it is going to listen."""
    limited = _limited(requests, uploads, clips, hosts_of(host, allowed_hosts), password)
    return behind_proxies(limited, trusted_proxies)


def page_of_keys(
    requests: SearchRequests,
    folder: Path,
    hosts: AllowedHosts,
    keys: Callable[[str], str | None] | None,
    root: str,
    clips: Clips,
) -> RequestLimits:
    """The page for those who have a key, or for all.

    Args:
        folder: for what it receives.
        keys: as of `RequestLimits`.
        root: the path that it is at, "" or as "/page".
    """
    return _limited(requests, _uploads(folder, requests), clips, hosts, None, keys, root)


def hosts_of(host: str, allowed_hosts: Sequence[str]) -> AllowedHosts:
    """The names that a server answers by that is going to listen at `host`."""
    space = space_host()
    # What reaches a Space has come through the Hub's proxy, by whatever name it calls it.
    return AllowedHosts(host, [*allowed_hosts, *([space] if space else [])], any_name=space is not None)


def behind_proxies(app: ASGIApp, trusted_proxies: Sequence[str]) -> ASGIApp:
    """Believes these, and nobody else, who asks."""
    return (
        cast(ASGIApp, ProxyHeadersMiddleware(cast(Any, app), list(trusted_proxies)))
        if trusted_proxies
        else app
    )


def _limited(
    requests: SearchRequests,
    uploads: Uploads,
    clips: Clips | None,
    hosts: AllowedHosts,
    password: str | None,
    keys: Callable[[str], str | None] | None = None,
    root: str = "",
) -> RequestLimits:
    page = build_page(requests, uploads)
    mounted = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        root_path=root or None,
        **page_settings(requests),
    )
    return RequestLimits(
        mounted,
        hosts=hosts,
        uploads=uploads,
        limits=requests.limits,
        password=password,
        keys=keys,
        in_space=space_host() is not None,
        questions={
            number: [getattr(block, "data_model", None) is not None for block in function.inputs]
            for number, function in page.fns.items()
        },
        waiting=lambda client: _waiting(page, client),
        asked=lambda session: session in page._queue.pending_messages_per_session,
        clips=clips,
    )


def _waiting(page: gr.Blocks, client: str) -> int:
    """Questions of one client in Gradio's queue."""
    queues = page._queue.event_queue_per_concurrency_id.values()
    waiting = (event.request.client for queue in queues for event in list(queue.queue))
    return sum(address is not None and client_key(address.host) == client for address in waiting)


class PatientProtocol(cast(Any, AutoHTTPProtocol)):
    """Closes a connection that does not say in time what it asks, or does not read what it is answered.

    uvicorn's own would wait for ever.
    """

    most = CONNECTIONS  # at a time
    said: asyncio.TimerHandle | None = None
    unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.close()
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_silent:
            self._wait_no_more()
        elif self.said is None:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look_again()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.unread is not None:
            self.unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        if self.unread is not None:
            self.unread.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        left = self.transport.get_write_buffer_size() - READ_BYTES
        self.unread = self.loop.call_later(READ_SECONDS, self._look, left)

    def _look(self, most: int) -> None:
        if self.transport.get_write_buffer_size() > most:
            self.transport.abort()
        else:
            self._look_again()

    @property
    def _is_silent(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self.said = self.loop.call_later(HEAD_SECONDS, self._close)

    def _wait_no_more(self) -> None:
        if self.said is not None:
            self.said.cancel()
            self.said = None

    def _close(self) -> None:
        if self._is_silent:
            self.transport.close()


class _Server(uvicorn.Server):
    """Says a line once it answers, and lets what it was asked be answered before it ends."""

    def __init__(self, config: uvicorn.Config, message: str, drain: Callable[[], Awaitable[None]] | None):
        super().__init__(config)
        self.message, self.drain = message, drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info("%s", self.message)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.drain is not None:
            for server in self.servers:
                server.close()
            await self.drain()
        await super().shutdown(sockets)


def open_more_files() -> int:
    """Lets a process have files for its connections and its galleries; returns how many connections.

    1,024 are usual, and without any left no image can be read and no connection be refused.
    """
    with suppress(ImportError, OSError, ValueError):  # not known to Windows
        import resource

        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 4 * CONNECTIONS if most == resource.RLIM_INFINITY else min(4 * CONNECTIONS, most)
        if now != resource.RLIM_INFINITY:
            if now < wanted:
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            return min(CONNECTIONS, max(now, wanted) // 2)
    return CONNECTIONS


def _listen(host: str, port: int | None) -> socket.socket:
    """Raises OSError where nobody can listen there."""
    first = int(os.environ.get("GRADIO_SERVER_PORT") or 0)
    ports = [port] if port is not None else range(first, first + 100) if first else PORTS
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failure: OSError | None = None
    for number in ports:
        try:
            return socket.create_server((host.strip("[]"), number), family=family, backlog=BACKLOG)
        except OSError as error:
            failure = error
    assert failure is not None
    at = host if port is None else f"{host}, port {port}"
    reason = failure.strerror or failure
    raise OSError(f"cannot listen at {at}: {reason}; choose another --port or --host") from failure
