"""Pictures from the network, where the server's owner allowed it, and from nowhere that its owner did not mean.

A host's name is looked up once, every address that it has is checked, and the connection goes to an address that was
checked, so that no second answer of a name server can send it elsewhere. Redirects start again from the beginning.
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

from pocketvlm.errors import ImageError

MAX_BYTES = 32 << 20
TIMEOUT = 15.0  # seconds for everything, redirects included
MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_SAFE = "/%?:@!$&'()*+,;=~-._"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the internet: not private, loopback, link-local, multicast or reserved."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None and address not in _UNICAST:  # `is_global` does not mind what nobody has, or no longer
            return False
        if inner is not None and not is_public(inner):
            return False
    return address.is_global and not address.is_multicast


_UNICAST = ipaddress.IPv6Network("2000::/3")  # all of the internet (RFC 4291)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Fetcher:
    """`hosts` as in "example.org", which stands for the usual ports, or "example.org:8443"."""

    def __init__(self, hosts: Collection[str], *, allows: Callable[[Address], bool] = is_public) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._allows = allows

    def fetch(self, url: str, param: str) -> bytes:
        """The body of what `url` leads to. Raises ImageError with `param`, and never says what it found inside."""
        deadline = time.monotonic() + TIMEOUT
        for _ in range(MAX_REDIRECTS + 1):
            parts = self._allowed(url, param)
            try:
                found = _get(parts, self._resolve(parts, param, deadline), deadline)
            except (OSError, http.client.HTTPException) as error:
                reason = "took too long" if isinstance(error, TimeoutError) else f"failed: {type(error).__name__}"
                raise ImageError(f"fetching from {parts.hostname} {reason}", param) from None
            except _TooLargeError:
                raise ImageError(f"the picture is over the limit of {MAX_BYTES:,} bytes", param) from None
            if isinstance(found, bytes):
                return found
            if isinstance(found, int):
                raise ImageError(f"{parts.hostname} answered with status {found}", param)
            url = _joined(url, found.location, param)
        raise ImageError(f"more than {MAX_REDIRECTS} redirects", param)

    def _allowed(self, url: str, param: str) -> SplitResult:
        try:
            url.encode()  # half of a surrogate pair is a ValueError, too
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ImageError("is not a valid URL", param) from None
        host = (parts.hostname or "").lower()
        if parts.scheme not in _PORTS or not host or parts.username is not None or parts.password is not None:
            raise ImageError("must be an http(s) URL without a user's name", param)
        named = f"[{host}]" if ":" in host else host
        usual = port in (None, _PORTS[parts.scheme])
        if not (f"{named}:{port or _PORTS[parts.scheme]}" in self._hosts or (usual and named in self._hosts)):
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
        raise ImageError("is redirected to what is not a valid URL", param) from None


def _addresses(host: str, deadline: float) -> list[str]:
    """A look-up has no time limit of its own, so it runs on a thread that may be left behind."""
    answers: SimpleQueue[list[str] | OSError] = SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            answers.put([str(entry[4][0]).partition("%")[0] for entry in found])
        except (OSError, UnicodeError) as error:
            answers.put(OSError(str(error)))

    threading.Thread(target=look_up, daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline))
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
    """The body, where it leads on to, or a status that is neither."""
    port = parts.port or _PORTS[parts.scheme]
    connection = _Pinned(str(parts.hostname), port, address, parts.scheme == "https", deadline)
    watchdog = threading.Timer(
        _left(deadline), connection.abort
    )  # a timeout of the socket's begins anew with each byte
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
        _left(deadline)
        return bytes(data)
    except (OSError, http.client.HTTPException):
        _left(deadline)
        raise
    finally:
        watchdog.cancel()
        connection.close()


def _left(deadline: float) -> float:
    """Seconds; raises TimeoutError where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Pinned(http.client.HTTPConnection):
    """Connects to one address whatever the host is called; the certificate is still the host's."""

    def __init__(self, host: str, port: int, address: str, secure: bool, deadline: float) -> None:
        super().__init__(host, port)
        self._address = address
        self._secure = secure
        self._deadline = deadline
        self._open: socket.socket | None = None  # `sock` is given away to the response

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), timeout=_left(self._deadline))
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        self._open = self.sock

    def abort(self) -> None:
        """From another thread: what reads or writes ends."""
        if self._open is not None:
            with suppress(OSError):
                self._open.shutdown(socket.SHUT_RDWR)
