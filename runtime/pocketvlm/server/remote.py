"""Fetch pictures from hosts that the server's owner allowed, and from nowhere else.

A host's name is looked up once, all its addresses are checked, and the connection goes to a checked address, so a
second answer of a name server cannot send it elsewhere. Each redirect goes through the same checks.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from queue import Empty, SimpleQueue
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pocketvlm.errors import ImageError, shortened

MAX_BYTES = 32 << 20  # of one picture
TIMEOUT = 15.0  # seconds for everything, redirects included
MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_SAFE = "/%?:@!$&'()*+,;=~-._"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet: not private, loopback, link-local, multicast or reserved."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and address not in _UNICAST:  # `is_global` accepts unassigned and withdrawn ranges
            return False
        if inner is not None and not is_public(inner):
            return False
    return address.is_global and not address.is_multicast


_UNICAST = ipaddress.IPv6Network("2000::/3")  # all of the internet (RFC 4291)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Fetcher:
    """Fetches from `hosts`, such as "example.org" (default ports) or "example.org:8443"."""

    def __init__(self, hosts: Collection[str], *, allows: Callable[[Address], bool] = is_public) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._allows = allows

    def fetch(self, url: str, param: str) -> bytes:
        """Return the body behind `url`. Raises ImageError with `param`; its message never contains fetched content."""
        deadline = time.monotonic() + TIMEOUT
        for _ in range(MAX_REDIRECTS + 1):
            parts = self._allowed(url, param)
            try:
                answer = _get(parts, self._resolve(parts, param, deadline), deadline)
            except (OSError, http.client.HTTPException) as error:
                reason = "took too long" if isinstance(error, TimeoutError) else f"failed: {type(error).__name__}"
                raise ImageError(f"fetching from {shortened(parts.hostname)} {reason}", param) from None
            except _TooLargeError:
                raise ImageError(f"the picture is over the limit of {MAX_BYTES:,} bytes", param) from None
            if isinstance(answer, bytes):
                return answer
            if isinstance(answer, int):
                raise ImageError(f"{shortened(parts.hostname)} answered with status {answer}", param)
            url = _joined(url, answer.location, param)
        raise ImageError(f"more than {MAX_REDIRECTS} redirects", param)

    def _allowed(self, url: str, param: str) -> SplitResult:
        try:
            url.encode()  # half of a surrogate pair raises a ValueError, too
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ImageError("is not a valid URL", param) from None
        host = (parts.hostname or "").lower()
        if parts.scheme not in _PORTS or not host or parts.username is not None or parts.password is not None:
            raise ImageError("must be an http(s) URL without a user name", param)
        name = f"[{host}]" if ":" in host else host
        is_default = port in (None, _PORTS[parts.scheme])
        if not (f"{name}:{port or _PORTS[parts.scheme]}" in self._hosts or (is_default and name in self._hosts)):
            raise ImageError("pictures are not fetched from this host; send it as a data: URI", param)
        return parts

    def _resolve(self, parts: SplitResult, param: str, deadline: float) -> str:
        addresses = _addresses(str(parts.hostname), deadline)
        if not addresses or not all(self._allows(ipaddress.ip_address(address)) for address in addresses):
            raise ImageError("pictures are not fetched from this host: its address is not a public one", param)
        return addresses[0]


def _joined(url: str, location: str, param: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise ImageError("is redirected to an invalid URL", param) from None


def _addresses(host: str, deadline: float) -> list[str]:
    """Look up a host. A look-up has no time limit, so it runs on a thread that may outlive the request."""
    answers: SimpleQueue[list[str] | OSError] = SimpleQueue()

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answers.put([str(entry[4][0]).partition("%")[0] for entry in entries])
        except (OSError, UnicodeError) as error:
            answers.put(OSError(str(error)))

    threading.Thread(target=look_up, daemon=True).start()
    try:
        answer = answers.get(timeout=_seconds_left(deadline))
    except Empty:
        raise TimeoutError from None
    if isinstance(answer, OSError):
        raise answer
    return answer


class _TooLargeError(Exception):
    pass


class _Redirect:
    def __init__(self, location: str) -> None:
        self.location = location


def _get(parts: SplitResult, address: str, deadline: float) -> bytes | _Redirect | int:
    """Return the body, a redirect, or another status."""
    port = parts.port or _PORTS[parts.scheme]
    connection = _Pinned(str(parts.hostname), port, address, parts.scheme == "https", deadline)
    # A timer, because the socket's own timeout starts again with each byte.
    watchdog = threading.Timer(_seconds_left(deadline), connection.abort)
    watchdog.start()
    try:
        target = quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE)}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "pocketvlm"})
        response = connection.getresponse()
        location = response.headers.get("location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return _Redirect(location)
        if response.status != 200:
            return response.status
        data = bytearray()
        while piece := response.read1(1 << 16):
            data += piece
            if len(data) > MAX_BYTES:
                raise _TooLargeError
        _seconds_left(deadline)
        return bytes(data)
    except (OSError, http.client.HTTPException):
        _seconds_left(deadline)
        raise
    finally:
        watchdog.cancel()
        connection.close()


def _seconds_left(deadline: float) -> float:
    """Return the seconds until the deadline. Raises TimeoutError where none are left."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Pinned(http.client.HTTPConnection):
    """Connects to a fixed address; the certificate must still be the host's."""

    def __init__(self, host: str, port: int, address: str, secure: bool, deadline: float) -> None:
        super().__init__(host, port)
        self._address = address
        self._secure = secure
        self._deadline = deadline
        self._open: socket.socket | None = None  # http.client hands `sock` over to the response

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), timeout=_seconds_left(self._deadline))
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        self._open = self.sock

    def abort(self) -> None:
        """End reading and writing, from another thread."""
        if self._open is not None:
            with suppress(OSError):
                self._open.shutdown(socket.SHUT_RDWR)
