"""Who may reach the page: by a password, by which names it answers, and which web sites' pages may ask it.

A browser sends whatever a page of any web site asks for, with the visitor's address and password. What it
says of itself, `Host`, `Origin` and `Sec-Fetch-Site`, no page can forge.
"""

import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from ..data.text_files import lines_of, read_text

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
DEFAULT_PORTS = {"http": 80, "https": 443}
PASSWORD_CHARACTERS = 8  # at least


def check_access(
    host: str | None,
    password_file: Path | None,
    allowed_hosts: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
) -> tuple[str, str | None]:
    """The address to listen on and the password, before anything is loaded.

    Args:
        host: `None`: $GRADIO_SERVER_NAME, which Spaces set, or this machine only.
        password_file: whose first line is the password; `None`: $TPAS_PASSWORD, if it is set.

    Raises:
        ValueError: other machines could reach it without a password, it is too short or no text, or a host or
            a proxy is no such.
        OSError: the file cannot be read.
    """
    host = check_names(host, allowed_hosts, trusted_proxies)
    password, source = os.environ.get("TPAS_PASSWORD") or None, "TPAS_PASSWORD"
    if password_file is not None:
        password, source = lines_of(read_text(password_file) + "\n")[0], str(password_file)
    if password is not None and not _is_text(password):
        raise ValueError(f"{source}: it is not in UTF-8")
    if password is not None and len(password) < PASSWORD_CHARACTERS:
        raise ValueError(f"{source}: a password has at least {PASSWORD_CHARACTERS} characters")
    if password is None and not is_loopback(host) and space_host() is None:
        raise ValueError(
            f"--host {host} lets other machines reach the gallery: give a password, by --password_file FILE "
            "or TPAS_PASSWORD"
        )
    return host, password


def check_names(
    host: str | None, allowed_hosts: Sequence[str] = (), trusted_proxies: Sequence[str] = ()
) -> str:
    """The address to listen on; raises ValueError as `check_access` for a host or a proxy that is none."""
    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    AllowedHosts(host, allowed_hosts)
    for proxy in trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise ValueError(f"--trusted_proxy takes an address or a network: {error}") from error
    return host


def check_tls(certificate: Path, key: Path) -> None:
    """Raises OSError for files that are no certificate and its key."""
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except OSError as error:  # of ssl's errors each is one
        files = f"{certificate} and {key}: {error.strerror or error}"
        raise OSError(f"no TLS by {files}; both are PEM files, and belong together") from error


def _no_passphrase() -> str:
    raise OSError("the key asks for a passphrase, which nobody is there to type: `openssl pkey` takes it off")


class AllowedHosts:
    """The names of one server.

    Args:
        address: on which it listens.
        named: further names, as its operator gives them; also pages under these may ask it.
        any_name: whether it answers by every name, as where only a proxy can reach it.

    Raises:
        ValueError: a given name is none, or has a scheme or a port.
    """

    def __init__(self, address: str, named: Sequence[str] = (), any_name: bool = False):
        for name in named:
            if _host_of(name) != name.lower().strip("[]") or not name:
                raise ValueError(
                    f"--allowed_host takes a host's name alone, as search.example.org, got {name!r}"
                )
        self.named = frozenset(name.lower().strip("[]") for name in named)
        self.any_name = any_name
        own = set() if is_loopback(address) else {address.strip("[]").lower(), socket.gethostname().lower()}
        self.names = LOCAL_NAMES | self.named | own - {"0.0.0.0", "::"}

    def refusal(self, headers: Headers, method: str, connected_to: str | None) -> str | None:
        """Why a request is refused, or None.

        Args:
            connected_to: this machine's address that the connection came in by, by which it answers as well.
        """
        for name in ("host", "x-forwarded-host"):  # Gradio believes the second where there is one
            hosts = headers.getlist(name)
            if len(hosts) > 1 or not all(self._answers(host, connected_to) for host in hosts):
                return "a host that this server does not answer by: --allowed_host names more"
        if not headers.getlist("host"):
            return "no host"
        origins = headers.getlist("origin")
        if len(origins) > 1 or not all(self._may_ask(origin, headers) for origin in origins):
            return "a page of another web site asked"
        elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        opened = headers.get("sec-fetch-mode") == "navigate" and method == "GET"  # by a link, or in a frame
        if elsewhere and not opened and not origins:
            return "a page of another web site asked"
        return None

    def _answers(self, host: str, connected_to: str | None) -> bool:
        name = _host_of(host)
        return name is not None and (self.any_name or name in self.names or name == connected_to)

    def _may_ask(self, origin: str, headers: Headers) -> bool:
        parts = urlsplit(origin) if _host_of(origin) else None
        if parts is None or parts.scheme not in DEFAULT_PORTS:
            return False
        if parts.hostname in self.named:
            return True
        own = headers.get("x-forwarded-host", headers["host"])
        return _netloc(origin, parts.scheme) == _netloc(own, parts.scheme)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach what listens at an address."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def serves_own_machine(
    host: str, allowed_hosts: Sequence[str] = (), trusted_proxies: Sequence[str] = ()
) -> bool:
    """Whether whoever asks sits at this machine: only it reaches the address, and no proxy is named.

    One that is not named cannot be used: its pages' `Origin` is no name of this server's.
    """
    return is_loopback(host) and not allowed_hosts and not trusted_proxies and space_host() is None


def space_host(environment: Mapping[str, str] = os.environ) -> str | None:
    """The name of the Hugging Face Space that this runs in; None outside of one."""
    if not environment.get("SPACE_ID"):
        return None
    return environment.get("SPACE_HOST") or "huggingface.co"


def client_key(address: str) -> str:
    """What stands for one visitor where requests are counted: of IPv6 the network, all of which one has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def _is_text(value: str) -> bool:
    """Whether it holds nothing that is no UTF-8, as a variable of the environment may."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _host_of(value: str) -> str | None:
    """The name, in lower case, in `name`, `name:port` or an origin; None where it is none of them."""
    try:
        parts = urlsplit(value if "://" in value else f"//{value}")
        if parts.port == 0 or parts.username is not None or parts.path or parts.query or parts.fragment:
            return None
        return parts.hostname
    except ValueError:
        return None


def _netloc(value: str, scheme: str) -> tuple[str | None, int]:
    parts = urlsplit(value if "://" in value else f"//{value}")
    return parts.hostname, parts.port or DEFAULT_PORTS[scheme]
