"""`--offline` as a promise that this process keeps: an audit hook refuses every address but loopback.

Nothing can remove the hook. It sees all that goes through Python's sockets, from C code as well; native libraries with
sockets of their own are out of its sight.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any

VARIABLE = "POCKETVLM_OFFLINE"  # tells child processes
_LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
_enforced = False


class NetworkForbiddenError(RuntimeError):
    """Not an OSError, so that code which copes with a missing network does not hide the attempt."""


def enforce() -> None:
    """From now on, for this process and, by `enforce_if_requested`, for those of ours that it starts."""
    global _enforced
    os.environ[VARIABLE] = "1"
    if not _enforced:
        _enforced = True
        sys.addaudithook(_hook)


def enforce_if_requested() -> None:
    """For the beginning of a child process."""
    if os.environ.get(VARIABLE):
        enforce()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    host: object = None
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind"):
        if args[0].family in (socket.AF_INET, socket.AF_INET6) and args[1]:
            # An empty host, or an address of zeros, means this machine to connect, but every interface to bind.
            host = args[1][0] or (None if event != "socket.bind" else "0.0.0.0")
    elif event in _LOOKUPS:
        host = args[0][0] if event == "socket.getnameinfo" else args[0]
    if not _is_loopback(host):
        raise NetworkForbiddenError(f"--offline: {event.removeprefix('socket.')} to {host!r} was refused")


def _is_loopback(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False
