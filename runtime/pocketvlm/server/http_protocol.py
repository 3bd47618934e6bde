"""uvicorn's HTTP/1.1, with our errors for invalid HTTP and a time limit for the head of a request."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pocketvlm.server.http_errors import HTTPError

HEAD_TIMEOUT = 20.0  # seconds until the head of a request is complete
LINGER = 1.0  # seconds that a refused connection stays open
MAX_HEAD = 1 << 16  # bytes of request line and headers


class HTTPProtocol(H11Protocol):
    """Refuses slow and invalid heads. uvicorn's own timer closes connections that idle between requests."""

    _head_timer: asyncio.TimerHandle | None = None
    _refused = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Connection(h11.SERVER, MAX_HEAD)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._head_timer is not None:
            self._head_timer.cancel()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn passes it by name
        """uvicorn calls this for any broken request."""
        self._refuse(HTTPError(400, "this is not valid HTTP/1.1, or its headers are too large", code="invalid_http"))

    def _watch_head(self) -> None:
        """Run the timer while a head is awaited, or the rest of a body after its response."""
        if self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._too_slow)

    def _too_slow(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(
                HTTPError(408, f"no complete request head arrived within {HEAD_TIMEOUT:g} s", code="request_timeout")
            )

    def _refuse(self, error: HTTPError) -> None:
        """Send an error and close a moment later, so that the reset for unread data does not overtake it."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = error.json()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=error.status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)


class _Connection(h11.Connection):
    """Refuses a body whose length two readers of HTTP may understand differently (RFC 9112, section 6.1).

    h11 itself refuses Content-Length fields that differ, and codings other than chunked.
    """

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("Transfer-Encoding with Content-Length, or in HTTP/1.0")
        return event
