"""Sends alarms to an address, in a thread of its own: what is watched never waits for it.

An alarm is sent at least once: whoever is killed between an answer and its line sends it again, with the same
`id`. What could not be delivered stays owed.
"""

import base64
import http.client
import json
import logging
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0  # of one try, all in all
TRIES = 4
FIRST_WAIT_S = 1.0  # between two tries, doubled each time
AGAIN_S = 60.0  # after which what was not taken is tried again, also where no new alarm comes
LAST_WAIT_S = 15.0  # for what is still to be sent, when the watching ends
TRY_AGAIN = (408, 425, 429)  # and all of the server's own errors


class _RefusedError(Exception):
    """An answer that another try would not change."""


class Webhook:
    """An address that is sent each alarm, as JSON in a POST.

    Args:
        url: http or https; a name and a password before its host are sent as Basic authorization. What
            follows the host is taken for a secret, and not shown.
        sent: called with the id of each alarm that the address took, by an answer of 200 to 299.

    Raises:
        ValueError: it is no such address.
    """

    def __init__(
        self,
        url: str,
        sent: Callable[[str], None] = lambda _: None,
        *,
        timeout_s: float = TIMEOUT_S,
        tries: int = TRIES,
        first_wait_s: float = FIRST_WAIT_S,
        again_s: float = AGAIN_S,
    ):
        self._url = check_url(url)
        self.name = _shown(self._url)
        self.sent, self.timeout_s, self.tries, self.first_wait_s = sent, timeout_s, tries, first_wait_s
        self.again_s = again_s
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._put_aside: list[dict[str, Any]] = []  # until the address answers again
        self._owed: dict[str, None] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="webhook", daemon=True)
        self._thread.start()

    def put(self, alarm: dict[str, Any]) -> None:
        """Sends an alarm, a line of alarms.jsonl, soon; returns at once."""
        self._owed[str(alarm["id"])] = None
        self._waiting.put(alarm)

    def close(self, wait_s: float = LAST_WAIT_S) -> None:
        """Waits so long for what is on its way, and says what was not delivered."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join(wait_s)
        if self._owed:
            logger.warning(
                "not delivered to %s: %d of the alarms, which are kept and sent at the next start",
                self.name,
                len(self._owed),
            )

    def _send_all(self) -> None:
        while (alarm := self._next()) is not None:
            try:
                delivered = self._deliver(alarm)
                if delivered:
                    self.sent(str(alarm["id"]))
            except OSError as error:  # of the disk
                logger.warning("%s", error)
                continue
            if not delivered:
                continue
            self._owed.pop(str(alarm["id"]), None)
            for earlier in self._put_aside if not self._closing.is_set() else ():
                self._waiting.put(earlier)
            self._put_aside.clear()

    def _next(self) -> dict[str, Any] | None:
        """The alarm to send, or None at the end; where none is new, after a while one that was not taken."""
        try:
            return self._waiting.get(timeout=self.again_s if self._put_aside else None)
        except queue.Empty:
            return self._put_aside.pop(0)

    def _deliver(self, alarm: dict[str, Any]) -> bool:
        body = json.dumps(alarm).encode()
        wait_s, reason = self.first_wait_s, ""
        for number in range(self.tries):
            if number and self._closing.wait(wait_s):
                break
            wait_s *= 2
            try:
                self._post(body)
                return True
            except _RefusedError as error:
                logger.warning("%s took no alarm: %s", self.name, error)
                return False
            except (OSError, http.client.HTTPException, ValueError) as error:
                # Not the error's own words: they may hold the address.
                reason = getattr(error, "strerror", None) or type(error).__name__
                if isinstance(error, TimeoutError):
                    reason = f"no answer in {self.timeout_s:g} s"
                elif isinstance(error, ConnectionError) and error.args and isinstance(error.args[0], str):
                    reason = error.args[0]
        logger.warning("%s took no alarm (%s): it is kept", self.name, reason)
        self._put_aside.append(alarm)
        return False

    def _post(self, body: bytes) -> None:
        """One try; it ends after `timeout_s`, whatever the other side does."""
        url, late = self._url, threading.Event()
        opened: list[socket.socket] = []

        def give_up() -> None:
            late.set()
            for connected in opened:  # wakes whoever reads or writes; a server may send a byte at a time
                with suppress(OSError):
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)

        is_https = url.scheme == "https"
        port = url.port or (443 if is_https else 80)
        host = str(url.hostname)
        connection = http.client.HTTPConnection(host, url.port or port, timeout=self.timeout_s)
        clock = threading.Timer(self.timeout_s, give_up)
        clock.daemon = True
        clock.start()
        try:
            plain = socket.create_connection((host, port), timeout=self.timeout_s)
            opened.append(plain)
            if is_https:
                secure = ssl.create_default_context().wrap_socket(
                    plain, server_hostname=host, do_handshake_on_connect=False
                )
                opened.append(secure)
                secure.do_handshake()
            connection.sock = opened[-1]
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("POST", path, body, self._headers(host, url.port))
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException, ValueError):
            if late.is_set():
                raise TimeoutError from None
            raise
        finally:
            clock.cancel()
            for connected in opened:
                connected.close()
        if 300 <= status < 400:
            raise _RefusedError(f"it redirects (status {status}): give the address that it leads to")
        if 400 <= status < 500 and status not in TRY_AGAIN:
            raise _RefusedError(f"it answers with status {status}")
        if not 200 <= status < 300:
            raise ConnectionError(f"status {status}")

    def _headers(self, host: str, port: int | None) -> dict[str, str]:
        shown = f"[{host}]" if ":" in host else host.encode("idna").decode()
        headers = {"Host": shown + (f":{port}" if port else "")}
        headers |= {"Content-Type": "application/json", "User-Agent": "tpas"}
        if self._url.username is not None:
            pair = f"{unquote(self._url.username)}:{unquote(self._url.password or '')}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return headers


def check_url(url: str) -> Any:
    """Its parts; ValueError, which shows nothing secret of it, where it is no address of http or https."""
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
        good = parts.scheme in ("http", "https") and parts.hostname and url.strip().isprintable()
        path = f"{parts.path}{parts.query}"
        if good and path.isascii() and " " not in f"{parts.hostname}{path}":
            str(parts.hostname).encode("idna")
            return parts
    except ValueError:
        pass
    raise ValueError("a webhook is an address such as https://host/path, in ASCII after the host")


def _shown(url: Any) -> str:
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}" + (f":{url.port}" if url.port else "")
