"""systemd's protocols: listening sockets that it passes to a service, and the report that the service is ready."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

from pocketvlm.errors import PocketVLMError

_FIRST = 3  # file descriptor, of sd_listen_fds(3)


def passed_sockets() -> list[socket.socket]:
    """Return the listening sockets that the parent process has passed on, as of sd_listen_fds(3); mostly none.

    The variables that announce them are removed, because child processes do not get the sockets. Raises PocketVLMError
    where one is not a TCP socket that listens.
    """
    process, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count.isdecimal():
        return []
    return [_adopted(descriptor) for descriptor in range(_FIRST, _FIRST + int(count))]


def notify(state: str) -> None:
    """Report READY=1 or STOPPING=1 to the service manager where it has asked for it, as of sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if sys.platform == "win32" or not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send(state.encode())


def _adopted(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise PocketVLMError(f"LISTEN_FDS: file descriptor {descriptor} is not a socket: {error.strerror}") from None
    if not listens or sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        raise PocketVLMError(
            f"LISTEN_FDS: file descriptor {descriptor} is not a TCP socket that listens; "
            "systemd passes one for ListenStream=127.0.0.1:8080 and Accept=no"
        )
    sock.set_inheritable(False)
    return sock
