"""What a server is told at its start, checked once."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pocketvlm.errors import RequestError
from pocketvlm.pictures.handles import HandleLimits
from pocketvlm.pictures.images import MAX_PIXELS

MEBIBYTE = 1 << 20
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """`slots` requests run at once, `queue` more wait; all others are refused with 429.

    `api_key` must be given to listen anywhere but on loopback. `allowed_hosts` are names for the Host header besides
    the server's own, `allowed_origins` the web pages that may call, as "https://example.org" or "*", and `image_hosts`
    the hosts that pictures may be fetched from. `handles` limits the pictures that are sent once and then named.
    Times in seconds, sizes in bytes.

    Raises RequestError whose `param` names the field.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    slots: int = 1
    queue: int = 64
    max_body: int = 64 * MEBIBYTE
    max_pixels: int = MAX_PIXELS
    read_timeout: float = 30.0
    grace: float = 30.0
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
    handles: HandleLimits = field(default_factory=HandleLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise RequestError("must be from 0 (any free port) to 65535", "port")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise RequestError("must be printable ASCII, and not empty", "api_key")
        for name, least in (("slots", 1), ("queue", 0), ("max_body", 1), ("max_pixels", 1), ("grace", 0)):
            if not getattr(self, name) >= least:  # nor NaN
                raise RequestError(f"must be at least {least}", name)
        if self.read_timeout <= 0:
            raise RequestError("must be more than 0", "read_timeout")
        for name in ("allowed_hosts", "image_hosts"):
            for host in getattr(self, name):
                if not _HOST.fullmatch(host):
                    raise RequestError(f"{host!r} is not a host, as in example.org or [::1]:8080", name)
        for origin in self.allowed_origins:
            parts = urlsplit(origin)
            if origin != "*" and (not parts.scheme or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
                raise RequestError(f"{origin!r} is not an origin, as in https://example.org", "allowed_origins")
        if self.api_key is None and not is_loopback(self.host):
            raise RequestError(
                f"listening on {self.host} lets other machines in: that needs a key, "
                "from --api-key or the environment's POCKETVLM_API_KEY",
                "api_key",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there. Names other than localhost are not looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False
