"""An HTTP/1.1 request: request line, headers, and a body of JSON or bytes."""

from __future__ import annotations

import json
from typing import Any

from fuzz.formats import json_text
from fuzz.records import entries, fields, octets

_END = b"\r\n"


def request(path: str, body: Any = None, method: str = "POST", **headers: str) -> bytes:
    """Return a sound request; `body` is bytes, or what JSON can hold."""
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    named = {"Host": "127.0.0.1", "Content-Type": kind, **headers}
    listed = [{"name": name.replace("_", "-"), "value": value} for name, value in named.items()]
    document = {"method": method, "path": path, "version": "HTTP/1.1", "headers": listed, "length": None}
    return encode(document if body is None else {**document, "body": body})


def decode(data: bytes) -> dict[str, Any]:
    head, _, rest = data.partition(_END * 2)
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, version = first.split(" ")
    headers = []
    for line in lines:
        name, _, value = line.partition(": ")
        if name != "Content-Length":
            headers.append({"name": name, "value": value})
    document = {"method": method, "path": path, "version": version, "headers": headers, "length": None}
    if not rest:
        return document
    is_json = {"name": "Content-Type", "value": "application/json"} in headers
    return {**document, "body": json.loads(rest) if is_json else rest}


def encode(document: Any) -> bytes:
    document = fields(document)
    body = document.get("body", b"")
    data = body if isinstance(body, bytes) else json_text.encode(body)
    length = document.get("length")
    first = b" ".join(octets(document.get(name, "")) for name in ("method", "path", "version"))
    lines = [first]
    for header in entries(document.get("headers")):
        header = fields(header)
        lines.append(octets(header.get("name", "")) + b": " + octets(header.get("value", "")))
    if data or length is not None:
        lines.append(b"Content-Length: " + octets(f"{len(data)}" if length is None else f"{length!s:.4000}"))
    return _END.join(lines) + _END * 2 + data
