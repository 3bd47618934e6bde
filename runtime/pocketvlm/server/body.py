"""Read the body of a request within limits of size, time, depth and number of values."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from pocketvlm.server.http_errors import HTTPError

_MAX_VALUES = 300_000  # a logit_bias of a whole vocabulary; each value may block other requests for microseconds
_SMALL_BODY = 1 << 16  # bytes parsed on the event loop: quicker than going to a thread and back
T = TypeVar("T")


async def read_object(
    scope: Scope,
    receive: Receive,
    make: Callable[[dict[str, Any]], T],
    *,
    max_body: int,
    timeout: float,
    in_thread: bool = False,
) -> T:
    """Return `make(object)` of the JSON object in the body. Raises HTTPError, ClientDisconnect and `make`'s errors.

    `make` runs in a thread if the body is large, or with `in_thread`.
    """
    data = await read_body(scope, receive, max_body=max_body, timeout=timeout)
    if len(data) <= _SMALL_BODY and not in_thread:
        return make(parse_object(data))
    return await asyncio.to_thread(lambda: make(parse_object(data)))


async def read_body(scope: Scope, receive: Receive, *, max_body: int, timeout: float) -> bytes:
    """Return the body. Raises HTTPError or ClientDisconnect."""
    try:
        return await asyncio.wait_for(_read(scope, receive, max_body), timeout)
    except asyncio.TimeoutError:
        message = f"the body did not arrive within {timeout:g} s"
        raise HTTPError(408, message, code="request_timeout", headers={"connection": "close"}) from None


async def _read(scope: Scope, receive: Receive, max_body: int) -> bytes:
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    too_large = HTTPError(
        413, f"the body is over the limit of {max_body:,} bytes; --max-body raises it", code="body_too_large"
    )
    if length.isdigit() and int(length) > max_body:
        raise too_large
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise HTTPError(
            415,
            "compressed bodies are not supported; send the body without Content-Encoding",
            code="unsupported_encoding",
        )
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        data += message.get("body", b"")
        if len(data) > max_body:
            raise too_large
        if not message.get("more_body"):
            return bytes(data)


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse JSON in UTF-8. Accepts NaN and infinities; the schema refuses them with the path of their field."""
    if sum(data.count(sign) for sign in (b",", b"[", b"{")) > _MAX_VALUES:
        raise _bad_json(f"has more than {_MAX_VALUES:,} values")
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _bad_json(f"is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _bad_json(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _bad_json("is nested too deep") from None
    except ValueError:  # an integer of thousands of digits
        raise _bad_json("holds a number that is too long") from None
    if not isinstance(value, dict):
        raise _bad_json("must be a JSON object")
    return value


def _bad_json(reason: str) -> HTTPError:
    return HTTPError(400, f"the body {reason}", code="invalid_json")
