"""Stands in front of Gradio: what the page itself asks for is let through, within limits, and nothing else.

Gradio would take a file's address from whoever writes one into a request, and fetch it. So uploads are
received here, are known by tokens alone, and of a question Gradio sees plain values only.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, QueryParams, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import AllowedHosts, client_key
from .clips import MEDIA_TYPES, Clips
from .questions import WHO, RequestError, UnloggedError, Visitor
from .requests import Limits
from .uploads import NoRoomError, Uploads

logger = logging.getLogger(__name__)

API = "/gradio_api"
# What the page asks for. Of the rest some would serve files, fetch addresses or pass by the queue.
READ = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon"} | {
    f"{API}/info",
    f"{API}/queue/data",
    f"{API}/startup-events",
    f"{API}/theme.css",
}
READ_BELOW = ("/assets/", "/static/", "/pwa_icon/")
HEARTBEAT = f"{API}/heartbeat/"  # and a session
JOIN, UPLOAD = f"{API}/queue/join", f"{API}/upload"
WRITTEN = {JOIN, UPLOAD, f"{API}/cancel", f"{API}/reset"}
CLIP = "/clip"  # of the image that its query names
QUERIES = {f"{API}/queue/data"}  # whose query is read; Gradio would look for a file by the page's

QUESTION_BYTES = 2**18  # of JSON: some three times what the longest texts need
FORM_BYTES = 2**16  # that names and boundaries add to the files of an upload
QUESTION_SECONDS, UPLOAD_SECONDS = 30, 300  # in which a request's body has to be here
OPEN_REQUESTS = 64  # of one client; a page that is open holds two
WAITING_QUESTIONS = 8  # of one client
QUESTIONS_TO_ONE = 4  # requests that the page makes for each that `Limits` counts, at most
CLIPS_A_MINUTE, WAITING_CLIPS = 10, 4  # that are cut for one client; one that is there can be seen again
REQUESTS_A_MINUTE = 1_200  # of one client and any kind; the page loads some hundred files
WRONG_PASSWORDS_A_MINUTE = 10
NEW_SESSIONS_AN_HOUR = 60  # of one client: the server keeps a number, and the oldest makes room
KNOWN_SESSIONS = 10_000
SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")

# The browser itself then refuses to load or send anything elsewhere. Gradio compiles its templates and
# scripts in the browser, hence "unsafe-eval".
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors {}",
    )
)
NO_FRAME, FRAME_OF_A_SPACE = "'none'", "'self' https://huggingface.co https://*.huggingface.co"


@dataclass
class RefusedError(Exception):
    """A request that is not answered: its HTTP status, and a line with nothing of the request in it."""

    status: int
    reason: str


class RequestLimits:
    """ASGI middleware.

    Args:
        hosts: by which names it answers, and to whose pages.
        uploads: where files wait until a question reads them.
        password: what has to be given, by HTTP's basic authentication under any user name; None: nothing.
        keys: by which a key, given in its place, is told to be one: its name, or None. With it nobody is
            served without one of the two.
        in_space: whether a page of huggingface.co may show it in a frame.
        questions: the numbers of what can be asked, and of each value of it whether it is files.
        waiting: how many questions of an address wait in the queue.
        asked: whether a session has asked something whose answers are still to be read.
        clips: of the gallery's films, where it has some.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: AllowedHosts,
        uploads: Uploads,
        limits: Limits,
        password: str | None = None,
        keys: Callable[[str], str | None] | None = None,
        in_space: bool = False,
        questions: Mapping[int, Sequence[bool]],
        waiting: Callable[[str], int] = lambda client: 0,
        asked: Callable[[str], bool] = lambda session: True,
        clips: Clips | None = None,
    ):
        self.app = app
        self.hosts, self.uploads, self.limits = hosts, uploads, limits
        self.questions, self.waiting, self.asked = questions, waiting, asked
        self.clips = clips
        self.waiting_for_clips: Counter[str] = Counter()
        self.password, self.keys = None if password is None else _digest(password), keys
        frame = FRAME_OF_A_SPACE if in_space else NO_FRAME
        self.headers = {
            "Content-Security-Policy": CONTENT_SECURITY_POLICY.format(frame),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if not in_space:
            self.headers |= {"X-Frame-Options": "DENY", "Cross-Origin-Opener-Policy": "same-origin"}
        self.rate_limiter = MovingWindowRateLimiter(MemoryStorage())
        self.open: Counter[str] = Counter()
        self.uploading: Counter[str] = Counter()  # bytes that have come of an upload, by who sends it
        self.sessions: OrderedDict[str, None] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        client = client_key(scope["client"][0] if scope["client"] else "")
        self.open[client] += 1
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers if name.startswith("access-control-")]:
                    del headers[name]  # Gradio would let pages of any web site read
                for name, value in self.headers.items():
                    headers[name] = value
            await send(message)

        try:
            answer = await self._answer(scope, receive, client)
            await answer(scope, receive, send_with_headers)
        except RefusedError as refusal:
            logger.warning("refused %s (%d): %s", client, refusal.status, refusal.reason)
            if not started:
                await _response(refusal)(scope, receive, send_with_headers)
        finally:
            self.open[client] -= 1
            if not self.open[client]:
                del self.open[client]

    async def _answer(self, scope: Scope, receive: Receive, client: str) -> ASGIApp:
        """What answers a request; raises RefusedError."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if self.open[client] > OPEN_REQUESTS:
            raise RefusedError(429, "too many requests at a time")
        self._count("request", RateLimitItemPerMinute(REQUESTS_A_MINUTE), client)
        connected_to = scope["server"][0] if scope.get("server") else None
        if reason := self.hosts.refusal(headers, method, connected_to):
            raise RefusedError(421 if "host" in reason else 403, reason)
        visitor = Visitor(self._who(headers, client), client)
        if method in ("GET", "HEAD"):
            if path == CLIP and self.clips is not None:
                return await self._clip(self.clips, scope, visitor)
            if not _is_read(path):
                raise RefusedError(404, "nothing that the page reads")
            if headers.get("transfer-encoding") or headers.get("content-length", "0") != "0":
                raise RefusedError(413, "a body where there is none to read")
            # Gradio would begin an answer, break it off with a trace in the log, and leave a task behind.
            if path in QUERIES and not self.asked(QueryParams(scope["query_string"]).get("session_hash", "")):
                raise RefusedError(404, "answers of a session that asked nothing")
            return _on(self.app, scope, receive, visitor)
        if method != "POST" or path not in WRITTEN:
            raise RefusedError(404, "nothing that the page asks for")
        if path == UPLOAD:
            return JSONResponse(await self._receive_files(scope, receive, headers, client))
        body = await read_body(receive, QUESTION_BYTES, QUESTION_SECONDS)
        if path == JOIN:
            body = json.dumps(self._question(body, client)).encode()
        else:
            body = json.dumps(_plain_values(_parse(body))).encode()
        return _on(self.app, scope, receive, visitor, body)

    async def _clip(self, clips: Clips, scope: Scope, visitor: Visitor) -> Response:
        """What a film shows around an image of the gallery, one cut at a time."""
        client = visitor.address or ""
        image = QueryParams(scope["query_string"]).get("image", "")
        if self.waiting_for_clips[client] >= WAITING_CLIPS:
            raise RefusedError(429, "too many clips at a time")
        self.waiting_for_clips[client] += 1
        try:
            rate = RateLimitItemPerMinute(CLIPS_A_MINUTE)
            path = await clips.made(image, lambda: self._count("clip", rate, client))
            await run_in_threadpool(clips.requests.log, visitor, "clip", image=image)
        except UnloggedError as error:
            raise RefusedError(error.status, "the audit log cannot be written") from error
        except RequestError as error:
            raise RefusedError(404, "a clip that there is not") from error
        finally:
            self.waiting_for_clips[client] -= 1
            if not self.waiting_for_clips[client]:
                del self.waiting_for_clips[client]
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers={"Cache-Control": "no-store"})

    def _count(self, kind: str, rate: RateLimitItem, client: str, cost: int = 1) -> None:
        if not self.limits.own_machine and not self.rate_limiter.hit(rate, kind, client, cost=cost):
            raise RefusedError(429, f"too many of one client: {kind}")

    def _who(self, headers: Headers, client: str) -> str | None:
        """The name of the key that was given; None of who gave a password, or needs none."""
        if self.password is None and self.keys is None:
            return None
        given = headers.get("authorization")
        if given is not None:
            rate = RateLimitItemPerMinute(WRONG_PASSWORDS_A_MINUTE)
            if not self.rate_limiter.test(rate, "password", client):
                raise RefusedError(429, "too many wrong passwords")
            secret = secret_in(given)
            if self.password is not None and hmac.compare_digest(_digest(secret), self.password):
                return None
            if self.keys is not None and (name := self.keys(secret)) is not None:
                return name
            self.rate_limiter.hit(rate, "password", client)
        raise RefusedError(401, "no password" if given is None else "a wrong password")

    async def _receive_files(
        self, scope: Scope, receive: Receive, headers: Headers, client: str
    ) -> list[str]:
        """The tokens of an upload's files."""
        limits = self.limits
        self._count("upload", RateLimitItemPerMinute(limits.requests_a_minute), client)
        declared = headers.get("content-length", "")
        most = most_upload_bytes(limits)
        if not declared.isdecimal() or len(declared) > 15 or int(declared) > most:
            raise RefusedError(413, "files that are too large together, or of no known size")
        if client in self.uploading:
            raise RefusedError(429, "an upload beside another")
        bounded = _bounded(receive, most)

        async def receive_counted() -> Message:
            message = await bounded()
            self.uploading[client] += len(message.get("body", b""))
            others = self.uploading.total() - self.uploading[client]
            self.uploads.check_room(client, self.uploading[client], others)
            return message

        self.uploading[client] = 0
        try:
            self.uploads.check_room(client, int(declared))
            request = Request(scope, receive_counted)
            async with asyncio.timeout(UPLOAD_SECONDS):
                form = request.form(max_files=limits.own_images, max_fields=1, max_part_size=FORM_BYTES)
                async with form as parts:
                    files = [part for part in parts.getlist("files") if isinstance(part, UploadFile)]
                    if any((file.size or 0) > limits.upload_megabytes * 2**20 for file in files):
                        raise RefusedError(413, "a file that is too large")
                    return [
                        await run_in_threadpool(
                            self.uploads.add, client, file.filename or "", file.file, file.size or 0
                        )
                        for file in files
                    ]
        except NoRoomError as error:
            raise RefusedError(503, str(error)) from error
        except TimeoutError as error:
            raise RefusedError(408, "an upload that took too long") from error
        except ClientDisconnect as error:
            raise RefusedError(400, "a request that was broken off") from error
        except MultiPartException as error:
            raise RefusedError(400, "no form of files, or too many of them") from error
        finally:
            del self.uploading[client]

    def _question(self, body: bytes, client: str) -> dict[str, Any]:
        """A question with plain values alone; the files in it become the event's `uploads`, their tokens."""
        rate = RateLimitItemPerMinute(QUESTIONS_TO_ONE * self.limits.requests_a_minute)
        self._count("question", rate, client)
        if self.waiting(client) >= WAITING_QUESTIONS:
            raise RefusedError(429, "too many questions at a time")
        question = _parse(body)
        number = _number(question.get("fn_index"))
        are_files = self.questions.get(number)
        if are_files is None:
            raise RefusedError(400, "a question that is none of the page's")
        data, event = question.get("data"), question.get("event_data")
        if not isinstance(data, list) or len(data) != len(are_files):
            raise RefusedError(400, "a question without its values")
        tokens, values = [], []
        for value, is_files in zip(data, are_files, strict=True):
            files = value if isinstance(value, list) else [value] if isinstance(value, dict) else None
            if files is None and value is not None and is_files:
                raise RefusedError(400, "a value where files belong")
            values.append(None if files is not None else _plain(value))
            tokens += [self._token(file, client) for file in files or []]
        if len(tokens) > self.limits.own_images:
            raise RefusedError(413, "too many files")
        event = _plain_values(event) if isinstance(event, dict) and not tokens else {}
        event["uploads"] = tokens
        session = question.get("session_hash")
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise RefusedError(400, "a session that has no name")
        self._know(session, client)
        return {
            "data": values,
            "event_data": event,
            "fn_index": number,
            "trigger_id": None if question.get("trigger_id") is None else _number(question["trigger_id"]),
            "session_hash": session,
        }

    def _token(self, file: object, client: str) -> str:
        token = file.get("path") if isinstance(file, dict) else None
        if not isinstance(token, str) or not self.uploads.knows(token, client):
            raise RefusedError(403, "a file that was not uploaded by who asked")
        return token

    def _know(self, session: str, client: str) -> None:
        if session not in self.sessions:
            self._count("session", RateLimitItemPerHour(NEW_SESSIONS_AN_HOUR), client)
            self.sessions[session] = None
            if len(self.sessions) > KNOWN_SESSIONS:
                self.sessions.popitem(last=False)
        self.sessions.move_to_end(session)


def _is_read(path: str) -> bool:
    if path.startswith(HEARTBEAT):
        return SESSION.fullmatch(path.removeprefix(HEARTBEAT)) is not None
    return path in READ or path.startswith(READ_BELOW) and ".." not in path


def most_upload_bytes(limits: Limits) -> int:
    """Of one request with files."""
    return limits.own_images * limits.upload_megabytes * 2**20 + FORM_BYTES


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode()).digest()


async def read_body(receive: Receive, most: int, seconds: float) -> bytes:
    """A request's body; raises RefusedError for one that is larger, takes longer, or is broken off."""
    bounded, parts, more = _bounded(receive, most), [], True
    try:
        async with asyncio.timeout(seconds):
            while more:
                message = await bounded()
                if message["type"] == "http.disconnect":
                    raise RefusedError(400, "a request that was broken off")
                parts.append(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError as error:
        raise RefusedError(408, "a request that took too long") from error
    return b"".join(parts)


def secret_in(authorization: str) -> str:
    """The password of `Basic` authentication, or the token of `Bearer`; "" where there is none."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    try:
        user_and_password = base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return user_and_password.partition(":")[2] if scheme.lower() == "basic" else ""


def _response(refusal: RefusedError) -> Response:
    # Its body may not have been read: that of the next request would be looked for in it.
    headers = {"Connection": "close"}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="tpas", charset="UTF-8"'
    return PlainTextResponse(f"Refused: {refusal.reason}.", status_code=refusal.status, headers=headers)


def _bounded(receive: Receive, most: int) -> Receive:
    read = 0

    async def receive_bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise RefusedError(413, "a request that is too large")
        return message

    return receive_bounded


def _on(app: ASGIApp, scope: Scope, receive: Receive, visitor: Visitor, body: bytes | None = None) -> ASGIApp:
    """`app` with this body, told who asks, and without a query where it needs none."""
    path = scope["path"]
    scope = dict(scope) | ({} if path in QUERIES else {"query_string": b""})
    if body is not None:
        dropped = (b"content-length", b"transfer-encoding", b"content-type", b"content-encoding")
        headers = [(name, value) for name, value in scope["headers"] if name not in dropped]
        headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        scope["headers"] = headers
    # Where Gradio would look for its own address, and the page for who asks.
    dropped = (b"x-gradio-server", WHO.encode())
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in dropped]
    if visitor.name is not None:
        scope["headers"].append((WHO.encode(), visitor.name.encode()))
    unread = [] if body is None else [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return unread.pop() if unread else await receive()

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await app(scope, receive_again, send)

    return answer


def _parse(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "no JSON, or such as no page writes") from error
    if not isinstance(content, dict):
        raise RefusedError(400, "JSON that is no object")
    return content


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _plain(value: object) -> object:
    """A text, a finite number, true, false or null as it is; raises RefusedError for all else."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()  # half a character has no UTF-8
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 2**53:
        return value
    raise RefusedError(400, "a value that the page does not send")


def _plain_values(content: dict[str, Any]) -> dict[str, object]:
    return {name: _plain(value) for name, value in content.items()}


def _number(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    raise RefusedError(400, "a number that the page does not send")
