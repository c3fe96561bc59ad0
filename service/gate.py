"""Stands before the endpoints: who may ask, how much, how often and how long; and what is said of it."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..search_page.access import AllowedHosts, client_key
from ..search_page.request_limits import (
    QUESTION_BYTES,
    QUESTION_SECONDS,
    WRONG_PASSWORDS_A_MINUTE,
    RefusedError,
    read_body,
    secret_in,
)
from .keys import Key, Keys

logger = logging.getLogger(__name__)

OPEN_TO_ALL = ("/health", "/ready", "/v1/openapi.json")  # what says nothing of galleries and images
OPEN_REQUESTS = 64  # of one client at a time
REQUEST_SECONDS = 120.0  # from the first byte of a request to the last of its answer
DRAIN_SECONDS = 30.0
FAILED = "The server could not do this. Its log says why."


@dataclass(frozen=True)
class Rules:
    """What a service allows.

    Attributes:
        hosts: by which names it answers.
        keys: None: nobody needs one, where only this machine can ask.
        requests_a_minute: of one key; None: any number.
        log_texts: whether the log says what was searched for.
    """

    hosts: AllowedHosts
    keys: Keys | None = None
    requests_a_minute: int | None = None
    log_texts: bool = False


class Gate:
    """ASGI middleware. Endpoints find in the request's state the `key`, or None, and the `address`.

    Args:
        answered: told of each request its path, status and seconds.
    """

    def __init__(self, app: ASGIApp, rules: Rules, answered: Callable[[str, int, float], None]):
        self.app, self.rules, self.answered = app, rules, answered
        self.rate_limiter = MovingWindowRateLimiter(MemoryStorage())
        self.open: Counter[str] = Counter()
        self.is_stopping = False

    async def drain(self) -> None:
        """Refuses what is new, and waits for what was taken before."""
        self.is_stopping = True
        end = time.monotonic() + DRAIN_SECONDS
        while self.open and time.monotonic() < end:
            await asyncio.sleep(0.02)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), 0
        address = client_key(scope["client"][0] if scope["client"] else "")
        state = scope.setdefault("state", {})
        state.update(key=None, address=address, texts=None, is_stopping=self.is_stopping)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Cache-Control"] = "no-store"
                if self.is_stopping:
                    headers["Connection"] = "close"
            await send(message)

        async def refuse(code: int, reason: str) -> None:
            if not status:
                await _refusal(code, reason)(scope, receive, watched)

        self.open[address] += 1
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                self._admit(scope, address)
                body = await read_body(receive, QUESTION_BYTES, QUESTION_SECONDS)
                # Whatever a client calls it, as curl -d does: all that is read here is JSON.
                own = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
                scope["headers"] = [*own, (b"content-type", b"application/json")]
                await self.app(scope, _received(body, receive), watched)
        except RefusedError as refusal:
            await refuse(refusal.status, refusal.reason)
        except TimeoutError:
            await refuse(504, "a request that took too long")
        except Exception:
            logger.exception("a request failed")
            await refuse(500, FAILED)
        finally:
            self.open[address] -= 1
            if not self.open[address]:
                del self.open[address]
            self._say(scope, status, time.perf_counter() - began)

    def _admit(self, scope: Scope, address: str) -> None:
        """Raises RefusedError where a request is not to be answered."""
        headers, path = Headers(scope=scope), scope["path"]
        if self.open[address] > OPEN_REQUESTS:
            raise RefusedError(429, "too many requests at a time")
        connected_to = scope["server"][0] if scope.get("server") else None
        if reason := self.rules.hosts.refusal(headers, scope["method"], connected_to):
            raise RefusedError(421 if "host" in reason else 403, reason)
        if path in OPEN_TO_ALL:
            return
        if self.is_stopping:
            raise RefusedError(503, "the server is stopping")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > QUESTION_BYTES:
            raise RefusedError(413, f"a request of more than {QUESTION_BYTES} bytes")
        key = scope["state"]["key"] = self._key(headers, address)
        often = self.rules.requests_a_minute
        if often is not None:
            client = address if key is None else key.sha256
            if not self.rate_limiter.hit(RateLimitItemPerMinute(often), "request", client):
                raise RefusedError(429, f"more than {often} requests in a minute")

    def _key(self, headers: Headers, address: str) -> Key | None:
        keys = self.rules.keys
        if keys is None:
            return None
        wrong = RateLimitItemPerMinute(WRONG_PASSWORDS_A_MINUTE)
        if not self.rate_limiter.test(wrong, "key", address):
            raise RefusedError(429, "too many wrong keys")
        given = headers.get("authorization")
        if given is None:
            raise RefusedError(401, "no key: send one as Authorization: Bearer KEY")
        key = key_of(keys, secret_in(given))
        if key is None:
            self.rate_limiter.hit(wrong, "key", address)
            raise RefusedError(401, "an unknown key")
        return key

    def _say(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")  # of what there is: anything else would be a series of its own
        endpoint = getattr(route, "path", "other")
        self.answered(endpoint, status, seconds)
        state = scope["state"]
        said = {
            "method": scope["method"],
            "endpoint": endpoint,
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
        said |= {"client": state["address"], "key": None if state["key"] is None else state["key"].name}
        said |= {"gallery": state.get("gallery"), "texts": len(state["texts"] or ())}
        if self.rules.log_texts and state["texts"] is not None:
            said["searched_for"] = state["texts"]
        logger.info("request", extra={"fields": said})


def key_of(keys: Keys, secret: str) -> Key | None:
    """Raises RefusedError where the file of keys cannot be read: nobody is served, and no key is wrong."""
    try:
        return keys.key_of(secret)
    except (OSError, ValueError) as error:
        logger.error("no key is taken: %s", error)
        raise RefusedError(503, "the keys cannot be read now: the server's log says why") from error


def _received(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more; then what else comes, such as that the client is gone."""
    unread = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return unread.pop() if unread else await receive()

    return receive_again


def _refusal(status: int, reason: str) -> JSONResponse:
    # Its body may not have been read: that of the next request would be looked for in it.
    headers = {"Connection": "close"}
    if status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="tpas", charset="UTF-8"'
    if status in (429, 503):
        headers["Retry-After"] = "1"
    return JSONResponse({"error": reason}, status, headers)
