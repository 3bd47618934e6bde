"""`--offline`: an audit hook refuses every network address but loopback.

The hook cannot be removed. It sees everything that goes through Python's socket module, even from C code, but not
native libraries that open sockets of their own.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any

from pocketvlm.errors import quoted

VARIABLE = "POCKETVLM_OFFLINE"  # passes the setting on to child processes
_LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
_enforced = False


class NetworkForbiddenError(RuntimeError):
    """Not an OSError: code that handles a missing network must not hide the attempt."""


def enforce() -> None:
    """Refuse the network from now on, in this process and in child processes that call `enforce_if_requested`."""
    global _enforced
    os.environ[VARIABLE] = "1"
    if not _enforced:
        _enforced = True
        sys.addaudithook(_hook)


def enforce_if_requested() -> None:
    """Refuse the network where the parent process does. For the start of a child process."""
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
        raise NetworkForbiddenError(f"--offline: {event.removeprefix('socket.')} to {quoted(host)} was refused")


def _is_loopback(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False
