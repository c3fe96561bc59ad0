"""Page and endpoints together, as one application and as one server."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..search_page.clips import Clips
from ..search_page.request_limits import RefusedError, RequestLimits, secret_in
from ..search_page.requests import SearchRequests
from ..search_page.serving import page_of_keys
from .api import PAGES, Served, build_api
from .audit import AuditLog
from .batches import TEXTS_A_PASS, Batches
from .gate import Gate, Rules, key_of
from .metrics import Metrics

ENDPOINTS = ("/v1/", "/health", "/ready", "/metrics")  # all others are the pages'


class Service:
    """An ASGI application: the endpoints, and of each gallery the page; that of one alone is at /, those of
    several at /page/NAME/.

    Args:
        folder: for what the pages receive, and for clips; None: neither of them.
        log: the audit log, which `/ready` looks at as well.
    """

    def __init__(
        self,
        galleries: Mapping[str, SearchRequests],
        rules: Rules,
        folder: Path | None = None,
        texts_a_pass: int = TEXTS_A_PASS,
        log: AuditLog | None = None,
    ):
        self.galleries, self.rules = galleries, rules
        metrics = Metrics(galleries)
        batches = {
            name: Batches(each.answers, texts_a_pass, metrics.texts.observe)
            for name, each in galleries.items()
        }
        metrics.watch(batches)
        self.pages: dict[str, RequestLimits] = {}
        clips: dict[str, Clips] = {}
        for name, each in galleries.items():
            if folder is None:
                break
            root = "" if len(galleries) == 1 else f"{PAGES}/{name}"
            keys = None if rules.keys is None else partial(self._name_of_key, name)
            clips[name] = Clips(folder / name / "clips", each)
            self.pages[root] = page_of_keys(each, folder / name, rules.hosts, keys, root, clips[name])
        api = build_api(Served(galleries, batches, clips, metrics, log))
        self.gate = Gate(api, rules, metrics.answered)
        self._running = Starlette(lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._running(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answers(scope)(scope, receive, send)

    def _answers(self, scope: Scope) -> ASGIApp:
        """What answers a request; its path is then the one of that part."""
        path = scope["path"]
        if path.startswith(ENDPOINTS):
            return self.gate
        if "" in self.pages:
            return self.pages[""]
        for root, page in self.pages.items():
            if path != root and not path.startswith(f"{root}/"):
                continue
            if not self._opens(scope, root.removeprefix(f"{PAGES}/")):
                break  # the gate says what it says where there is no such gallery
            if path == root:
                return RedirectResponse(f"{root}/")
            scope["path"], scope["raw_path"] = path.removeprefix(root), path.removeprefix(root).encode()
            scope["root_path"] = root
            return page
        return self.gate

    def _opens(self, scope: Scope, gallery: str) -> bool:
        given = Headers(scope=scope).get("authorization", "")
        try:
            return self.rules.keys is None or self._name_of_key(gallery, secret_in(given)) is not None
        except RefusedError:
            return False

    def _name_of_key(self, gallery: str, secret: str) -> str | None:
        """None where it is no key, or does not open the gallery."""
        key = None if self.rules.keys is None else key_of(self.rules.keys, secret)
        return key.name if key is not None and key.opens(gallery) else None

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for page in self.pages.values():
                await stack.enter_async_context(page.app.router.lifespan_context(page.app))  # type: ignore
            yield
