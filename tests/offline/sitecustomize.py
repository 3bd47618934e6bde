"""Blocks every socket that is not loopback, in this process; and where tests share the cores, shows it only one.

conftest.py loads it for the tests and puts this folder on PYTHONPATH, so that Python loads it at the start of every
child. An audit hook rather than patched functions: it sees C code that uses Python's sockets too, and nothing can
remove it. Native libraries with sockets of their own are out of its sight.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any


class NetworkBlockedError(RuntimeError):
    """Not an OSError, so that code which copes with a missing network does not hide the attempt."""


def _is_loopback(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    host: object = None
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if args[0].family in (socket.AF_INET, socket.AF_INET6) and args[1]:
            host = args[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    if not _is_loopback(host):
        raise NetworkBlockedError(f"a test tried to reach the network: {event} {host}")


sys.addaudithook(_hook)

if hasattr(os, "sched_getaffinity"):
    _allowed = os.sched_getaffinity

    def _shown(pid: int) -> set[int]:
        return {min(_allowed(pid))} if "POCKETVLM_TEST_ONE_CORE" in os.environ else _allowed(pid)

    os.sched_getaffinity = _shown
