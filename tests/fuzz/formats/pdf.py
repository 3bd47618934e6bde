"""PDF: objects, the table of their places and the trailer (ISO 32000-1, 7.3 and 7.5).

In a document, names are text that begins with a slash, references are text such as "3 0 R", and strings are bytes.
`canonical` writes a file as `encode` does; only such files stay the same.
"""

from __future__ import annotations

import re
from typing import Any

from fuzz.records import entries, fields, octets, whole

_OBJECT = re.compile(rb"(\d+) (\d+) obj\b\s*(.*?)\s*endobj\b", re.DOTALL)
_STREAM = re.compile(rb"\bstream\r?\n(.*?)\r?\nendstream\s*$", re.DOTALL)
_TRAILER = re.compile(rb"trailer\s*(<<.*?>>)\s*startxref", re.DOTALL)
_TOKEN = re.compile(
    rb"\s*(?:(<<)|(>>)|(\[)|(\])|<([0-9A-Fa-f\s]*)>|\(((?:[^()\\]|\\.)*)\)|(\d+ \d+ R)\b|(/[^\s<>\[\]()/]*)"
    rb"|([-+]?\d*\.\d+|[-+]?\d+)|(\w+))",
    re.DOTALL,
)
_PLAIN = re.compile(rb"[\t\n\r -~]*")


def decode(data: bytes) -> dict[str, Any]:
    objects = []
    for number, generation, body in _OBJECT.findall(data):
        one: dict[str, Any] = {"number": int(number), "generation": int(generation)}
        if stream := _STREAM.search(body):
            body = body[: stream.start()]
            # A stream of text is a page: its lines are operators.
            one["stream"] = stream[1].split(b"\n") if _PLAIN.fullmatch(stream[1]) else stream[1]
        one["value"] = _value(body)
        if "stream" in one:
            one["value"]["/Length"] = None
        objects.append(one)
    trailer = _value(_TRAILER.findall(data)[-1])
    trailer["/Size"] = None
    return {"version": data[5:8].decode(), "objects": objects, "trailer": trailer, "places": None, "start": None}


def encode(document: Any) -> bytes:
    document = fields(document)
    file = bytearray(b"%PDF-" + octets(document.get("version", "")) + b"\n")
    places: list[tuple[int, int, int]] = []
    for one in entries(document.get("objects")):
        one = fields(one)
        number, generation = (whole(one.get(name)) for name in ("number", "generation"))
        places.append((number, generation, len(file)))
        file += b"%d %d obj\n" % (number, generation) + _object(one) + b"\nendobj\n"
    start, known = len(file), document.get("places")
    trailer = dict(fields(document.get("trailer")))
    if "/Size" in trailer and trailer["/Size"] is None:
        trailer["/Size"] = max((number for number, *_ in places), default=0) + 1
    file += b"xref\n0 1\n0000000000 65535 f \n"
    for index, (number, generation, place) in enumerate(places):
        shown = entries(known)[index] if index < len(entries(known)) else place
        file += b"%d 1\n%010d %05d n \n" % (number, abs(whole(shown)) % 10**10, generation % 10**5)
    file += b"trailer\n" + _written(trailer) + b"\nstartxref\n"
    told = document.get("start")
    return bytes(file + b"%d\n%%%%EOF\n" % whole(start if told is None else told))


def canonical(data: bytes) -> bytes:
    return encode(decode(data))


def _object(one: dict[str, Any]) -> bytes:
    value, stream = one.get("value"), one.get("stream")
    if stream is None:
        return _written(value)
    body = b"\n".join(map(octets, entries(stream))) if isinstance(stream, list) else octets(stream)
    if isinstance(value, dict) and "/Length" in value and value["/Length"] is None:
        value = {**value, "/Length": len(body)}
    return _written(value) + b"\nstream\n" + body + b"\nendstream"


def _written(value: Any, depth: int = 0) -> bytes:
    if isinstance(value, dict) and depth < 900:
        pairs = (octets(key) + b" " + _written(item, depth + 1) for key, item in value.items())
        return b"<< " + b" ".join(pairs) + b" >>"
    if isinstance(value, list) and depth < 900:
        return b"[" + b" ".join(_written(item, depth + 1) for item in value) + b"]"
    if isinstance(value, bytes):
        return b"<" + value.hex().encode() + b">"
    if value is None or isinstance(value, bool):
        return {None: b"null", True: b"true", False: b"false"}[value]
    return octets(value)


def _value(data: bytes) -> Any:
    value, _ = _parsed(data, 0)
    return value


def _parsed(data: bytes, place: int) -> tuple[Any, int]:
    match = _TOKEN.match(data, place)
    if match is None:
        raise ValueError(f"not PDF: {data[place : place + 20]!r}")
    place, kind, text = match.end(), match.lastindex, match[match.lastindex or 0]
    if kind in (1, 3):
        items = []
        while not (end := _TOKEN.match(data, place)) or end.lastindex != kind + 1:
            item, place = _parsed(data, place)
            items.append(item)
        place = end.end()
        return (dict(zip(items[::2], items[1::2], strict=True)) if kind == 1 else items), place
    if kind == 5:
        return bytes.fromhex(text.decode()), place
    if kind == 6:
        return re.sub(rb"\\(.)", rb"\1", text, flags=re.DOTALL), place
    if kind == 9:
        return (float(text) if b"." in text else int(text)), place
    return {b"true": True, b"false": False, b"null": None}.get(text, text.decode("latin-1")), place
