"""Stands in front of Gradio: no file is served by its path, uploads are bounded before they are written to
disk, and no browser is let call anywhere else."""

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio's addresses that read a path or another server's address, or hand what was sent to ffmpeg. The page's
# images and files are inside its answers, so it needs none of them.
REFUSED = ("/file=", "/file/", "/proxy=", "/stream/", "/custom_component/", "/process_recording")
UPLOAD = "/upload"
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
    )
)


class RequestLimits:
    """ASGI middleware.

    Args:
        most_upload_bytes: of one request with files.
        uploads_a_minute: such requests of one address.
    """

    def __init__(self, app: ASGIApp, most_upload_bytes: int, uploads_a_minute: int):
        self.app = app
        self.most_upload_bytes = most_upload_bytes
        self.rate_limiter = MovingWindowRateLimiter(MemoryStorage())
        self.rate = RateLimitItemPerMinute(uploads_a_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if refusal := self._refusal(scope):
            await refusal(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
                headers["Referrer-Policy"] = "no-referrer"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        path = scope["path"]
        if any(part in path for part in REFUSED):
            return PlainTextResponse("This server does not serve files.", status_code=403)
        if not path.rstrip("/").endswith(UPLOAD):
            return None
        length = Headers(scope=scope).get("content-length", "")
        if not length.isdecimal() or int(length) > self.most_upload_bytes:
            return PlainTextResponse("These files are too large together.", status_code=413)
        if not self.rate_limiter.hit(self.rate, scope["client"][0] if scope["client"] else ""):
            return PlainTextResponse("Too many uploads in a minute: wait a little.", status_code=429)
        return None
