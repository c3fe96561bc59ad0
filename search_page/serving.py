"""The server that the search page runs on, and who may reach it."""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import fastapi
import gradio as gr
import uvicorn
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

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
        port: `None`: the first free one from $GRADIO_SERVER_PORT, or from 7860.
        allowed_hosts: names by which it answers beside its own.
        trusted_proxies: addresses and networks whose X-Forwarded-For is believed; nobody else's is.

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    listening = _listen(host, port)
    # Uploads pass through a folder of this process, which goes with it, also where it is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    remove_folders_of_killed()
    with (
        tempfile.TemporaryDirectory(prefix=FOLDER) as folder,
        held_alone(Path(folder, WRITER)),
        suppress(KeyboardInterrupt),
    ):
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "gradio"))
        uploads = Uploads(Path(folder, "uploads"), most_upload_bytes(requests.limits))
        clips = Clips(Path(folder, "clips"), requests)
        app = guarded_page(requests, uploads, host, password, allowed_hosts, trusted_proxies, clips)
        config = uvicorn.Config(
            app,
            log_level="warning",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        address, number = listening.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        message = "%d images at http://%s:%d/ (Ctrl+C ends it)"
        _Server(config, (message, len(requests.gallery), shown, number)).run(sockets=[listening])


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
    space = space_host()
    named = [*allowed_hosts, *([space] if space else [])]
    page = build_page(requests, uploads)
    mounted = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        **page_settings(requests),
    )
    limited = RequestLimits(
        mounted,
        # What reaches a Space has come through the Hub's proxy, by whatever name it calls it.
        hosts=AllowedHosts(host, named, any_name=space is not None),
        uploads=uploads,
        limits=requests.limits,
        password=password,
        in_space=space is not None,
        questions={
            number: [getattr(block, "data_model", None) is not None for block in function.inputs]
            for number, function in page.fns.items()
        },
        waiting=lambda client: _waiting(page, client),
        asked=lambda session: session in page._queue.pending_messages_per_session,
        clips=clips,
    )
    if not trusted_proxies:
        return limited
    return cast(ASGIApp, ProxyHeadersMiddleware(cast(Any, limited), list(trusted_proxies)))


def _waiting(page: gr.Blocks, client: str) -> int:
    """Questions of one client in Gradio's queue."""
    queues = page._queue.event_queue_per_concurrency_id.values()
    waiting = (event.request.client for queue in queues for event in list(queue.queue))
    return sum(address is not None and client_key(address.host) == client for address in waiting)


class _Server(uvicorn.Server):
    """Says a line once it answers."""

    def __init__(self, config: uvicorn.Config, message: tuple):
        super().__init__(config)
        self.message = message

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info(*self.message)


def _listen(host: str, port: int | None) -> socket.socket:
    """Raises OSError where nobody can listen there."""
    first = int(os.environ.get("GRADIO_SERVER_PORT") or 0)
    ports = [port] if port is not None else range(first, first + 100) if first else PORTS
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    failure: OSError | None = None
    for number in ports:
        try:
            return socket.create_server((host.strip("[]"), number), family=family, backlog=128)
        except OSError as error:
            failure = error
    assert failure is not None
    at = host if port is None else f"{host}, port {port}"
    reason = failure.strerror or failure
    raise OSError(f"cannot listen at {at}: {reason}; choose another --port or --host") from failure
