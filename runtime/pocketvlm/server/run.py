"""Run a service on a socket, from listening to an orderly shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import uvicorn

from pocketvlm.errors import PocketVLMError
from pocketvlm.server.app import Service
from pocketvlm.server.http_protocol import HTTPProtocol
from pocketvlm.server.service_manager import notify
from pocketvlm.server.settings import Settings, is_loopback

logger = logging.getLogger(__name__)
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)]
_BACKLOG = 256  # connections that the kernel keeps until they are accepted


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket. Raises PocketVLMError where the port is in use or the address is not local."""
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY where the protocol is named
        if hasattr(socket, "SO_REUSEPORT"):  # on Windows the option lets a second server take the port over
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        raise PocketVLMError(f"cannot listen on {host} port {settings.port}: {error.strerror or error}") from None
    return sock


def listen_on_first(settings: Settings, ports: Sequence[int]) -> socket.socket:
    """Return a socket that listens on the first of `ports` that is free. Raises PocketVLMError where none is."""
    for port in ports[:-1]:
        with suppress(PocketVLMError):
            return listen(replace(settings, port=port))
    return listen(replace(settings, port=ports[-1]))


def adopt(sockets: Sequence[socket.socket], settings: Settings) -> Settings:
    """Return the settings with the address of the sockets. Raises RequestError where it needs a key and has none."""
    for sock in sockets:
        host, port = sock.getsockname()[:2]
        settings = replace(settings, host=host, port=port)
        if not is_loopback(host):
            break
    return settings


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True)
class Listening:
    """Sockets that listen. `passed`: their owner keeps them open, so that another server can follow this one."""

    sockets: Sequence[socket.socket]
    passed: bool = False


def serve(service: Service, settings: Settings, listening: Listening, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish running requests. A second signal, or `grace` seconds, end them.

    Requests that come meanwhile are refused, or left to the next server where the sockets were passed on. On Windows,
    where another process cannot send SIGTERM, Ctrl-Break is the same.
    """
    asyncio.run(_serve(service, settings, listening, ready))


async def _serve(service: Service, settings: Settings, listening: Listening, ready: Callable[[], None]) -> None:
    config = uvicorn.Config(
        service.app,
        http=HTTPProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=3,
    )
    server = _Server(config)
    shutdown = asyncio.create_task(_shut_down(service, server, settings.grace, passed=listening.passed))
    serving = asyncio.create_task(server.serve(sockets=list(listening.sockets)))
    service.models.arrange_soon()  # a model that is loaded already may be idle from now on
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    if server.started:
        ready()
        notify("READY=1")
    try:
        await serving
    finally:
        shutdown.cancel()


async def _shut_down(service: Service, server: _Server, grace: float, *, passed: bool) -> None:
    """After the first signal finish running requests, and refuse new ones or accept none; then stop."""
    await server.signals.get()
    notify("STOPPING=1")
    if passed:
        await server.stop_accepting()
    else:
        service.answers.draining = True
    logger.info("shutting down: %d requests run, %d wait", service.models.running, service.models.waiting)
    idle = asyncio.create_task(_no_connections(server) if passed else _idle(service))
    second = asyncio.create_task(server.signals.get())
    await asyncio.wait({idle, second}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
    if not idle.done():
        service.answers.abort()
        await asyncio.wait({idle}, timeout=5)
    server.should_exit = True


async def _idle(service: Service) -> None:
    while service.answers.busy:
        await asyncio.sleep(0.05)


async def _no_connections(server: _Server) -> None:
    while True:
        await asyncio.sleep(0.05)  # first, because a connection that was just accepted is not in the list yet
        if not server.server_state.connections:
            return


class _Server(uvicorn.Server):
    """Queues signals. uvicorn itself would end at the first one."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.signals: asyncio.Queue[int] = asyncio.Queue()

    async def stop_accepting(self) -> None:
        """Leave new connections in the socket. The next answer on an open one says that it is closed after it.

        No other is closed before its ordinary time limits: a request may be under way.
        """
        loop = asyncio.get_running_loop()
        for sock in (sock for server in self.servers for sock in server.sockets):
            loop.remove_reader(sock.fileno())
        # asyncio accepts a connection in one round of its loop and attaches it in the next: a server that is closed
        # between them would drop it.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        close = (b"connection", b"close")
        self.config.encoded_headers.append(close)
        self.server_state.default_headers = [*self.server_state.default_headers, close]
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_started:
                cycle.default_headers = self.server_state.default_headers

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def on_signal(number: int, _frame: object = None) -> None:
            loop.call_soon_threadsafe(self.signals.put_nowait, number)

        before = {}
        with suppress(ValueError):  # not on the main thread: its owner handles the signals
            before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
