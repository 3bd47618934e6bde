"""HTTP requests to `pocketvlm serve`; after each the server must still answer."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from typing import Any

from fuzz.cases import Original
from fuzz.formats import drawing, saved
from fuzz.formats.http_request import request
from fuzz.kinds import Attempt, Work
from fuzz.kinds.schemas import SCHEMAS, TOOLS
from fuzz.outcomes import ABORT, HANG, TRACEBACK, not_clean
from server.conftest import Server, data_uri, start, stop

BATCH = 150
_OPTIONS = ("--parallel", "1", "--threads", "1", "--read-timeout", "1", "--ctx-size", "1024", "--vision", "gguf")
# Every field there is. Only a keyword in the tools is not supported.
GOOD: dict[str, Any] = {
    "model": "iota",
    "messages": [
        {"role": "system", "content": "be brief", "name": "boss"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "hi"},
                {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low", "max_image_tokens": 64}},
                {"type": "image", "base64": "aGk=", "detail": "auto"},
            ],
        },
        {
            "role": "assistant",
            "content": "yes",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "ok", "tool_call_id": "1"},
        {"role": "user", "content": "hi"},
    ],
    "max_tokens": 1,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "seed": 1,
    "stop": ["a"],
    "n": 1,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "repeat_penalty": 1.1,
    "ignore_eos": False,
    "logit_bias": {"1": 1},
    "logprobs": True,
    "top_logprobs": 1,
    "stream": False,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "tools": [
        {"type": "function", "function": {"name": "f", "description": "d", "strict": True, "parameters": {"not": {}}}}
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "tool_prompt": "p",
    "parallel_tool_calls": True,
    "reasoning_effort": "low",
    "user": "u",
    "metadata": {"k": "v"},
}
_PATIENCE = 10.0  # seconds
_CHAT = "/v1/chat/completions"


def originals() -> dict[str, Original]:
    uri = data_uri(saved(drawing(), "PNG"))
    look = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": uri, "detail": "low"}}]
    data = base64.b64encode(saved(drawing(), "PDF", save_all=True, append_images=[drawing()])).decode()
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": data}, "pages": "2-", "detail": "low"}
    messages = [*GOOD["messages"][2:], {"role": "user", "content": look}]
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMAS["person"]}}
    bodies: dict[str, dict[str, Any]] = {
        "good": {**GOOD, "messages": messages, "tools": TOOLS, "tool_choice": "none"},
        "file": {"messages": [{"role": "user", "content": [file]}], "max_tokens": 1},
        "picture": {"messages": [{"role": "user", "content": look}], "max_tokens": 2},
        "stream": {"stream": True, "n": 2, "logprobs": True, "top_logprobs": 3, "max_tokens": 3, "stop": ["."]},
        "sampling": {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "seed": 1, "logit_bias": {"5": 2}, "max_tokens": 3},
        "schema": {"response_format": schema, "max_tokens": 20},
        "tools": {"tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False, "max_tokens": 4},
    }
    hi = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    close = {"Connection": "close"}
    sent = {name: request(_CHAT, {"messages": hi, **body}, **close) for name, body in bodies.items()}
    sent["upload"] = request("/v1/images", saved(drawing(), "PNG"), **close)
    sent["document"] = request("/v1/images", saved(drawing(), "PDF"), **close)
    sent["models"] = request("/v1/models/iota", method="GET", **close)
    return {name: Original("http_request", data) for name, data in sent.items()}


@contextmanager
def opened(_: Work) -> Iterator[Attempt]:
    server = start(*_OPTIONS)

    def attempt(_name: str, data: bytes) -> str | None:
        nonlocal server
        if server.process.poll() is not None:
            server = start(*_OPTIONS)
        status, body = _exchange(server, data)
        if server.process.poll() is not None:
            not_clean(ABORT, "the server ended", "".join(server.log)[-4000:])
        if status >= 500:
            _report(server, status, body)
        _check_health(server)
        if not status:
            return "it waits for the rest"
        return None if status < 400 else _message(body)

    try:
        yield attempt
    finally:
        stop(server)


def _report(server: Server, status: int, body: bytes) -> None:
    error = {}
    with suppress(ValueError, KeyError, TypeError):
        error = json.loads(body)["error"]
    crashed = error.get("code") == "engine_crashed"
    log = "".join(server.log)[-4000:]
    not_clean(ABORT if crashed else TRACEBACK, f"{status} {error.get('code')}: {error.get('message')}", log)


def _message(body: bytes) -> str:
    """Return the message of an error, or the first line of one that is below HTTP's level."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("latin-1").split("\r\n")[0] or "no body"


def _exchange(server: Server, data: bytes) -> tuple[int, bytes]:
    """Return status and body of the answer. A request whose head has no end gets none: then status 0."""
    whole = b"\r\n\r\n" in data
    with socket.create_connection(("127.0.0.1", server.port), _PATIENCE if whole else 0.2) as connection:
        try:
            connection.sendall(data)
            response = HTTPResponse(connection, method=data.partition(b" ")[0].decode("latin-1"))
            response.begin()
            return response.status, response.read()
        except TimeoutError:
            if not whole:
                return 0, b""
            not_clean(HANG, "no answer", "".join(server.log)[-2000:])
        except (HTTPException, OSError) as error:
            not_clean(TRACEBACK, f"no answer: {type(error).__name__}", "".join(server.log)[-2000:])


def _check_health(server: Server) -> None:
    status, body = _exchange(server, request("/health", method="GET", Connection="close"))
    if status != 200:
        not_clean(TRACEBACK, f"afterwards /health is {status}", body.decode("latin-1"))
