"""The block of conftest.py works, here and in child processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

ADDRESS = ("192.0.2.1", 80)  # TEST-NET-1: never assigned


def _udp(send: Callable[[socket.socket], object]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        send(sock)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: socket.create_connection(ADDRESS, timeout=1),
        lambda: _udp(lambda sock: sock.connect(ADDRESS)),
        lambda: _udp(lambda sock: sock.connect_ex(ADDRESS)),
        lambda: _udp(lambda sock: sock.sendto(b"", ADDRESS)),
        lambda: _udp(lambda sock: sock.sendmsg([b""], [], 0, ADDRESS)),
        lambda: socket.getaddrinfo("example.invalid", 80),
        lambda: socket.gethostbyname("example.invalid"),
    ],
    ids=["create_connection", "connect", "connect_ex", "sendto", "sendmsg", "getaddrinfo", "gethostbyname"],
)
def test_the_network_is_blocked(attempt: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="tried to reach the network"):
        attempt()


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()


def test_child_processes_are_blocked_too() -> None:
    code = f"import socket; socket.create_connection({ADDRESS!r}, timeout=1)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert child.returncode != 0
    assert "NetworkBlockedError: a test tried to reach the network" in child.stderr
