"""Matroska and WebM: elements with ids and sizes, nested (RFC 8794, RFC 9559)."""

from __future__ import annotations

from typing import Any

from fuzz.records import entries, fields, integer, octets, whole

_NESTED = {
    0x1A45DFA3: "EBML", 0x18538067: "Segment", 0x114D9B74: "SeekHead", 0x4DBB: "Seek", 0x1549A966: "Info",
    0x1654AE6B: "Tracks", 0xAE: "TrackEntry", 0xE0: "Video", 0x1F43B675: "Cluster", 0xA0: "BlockGroup",
    0x1C53BB6B: "Cues", 0xBB: "CuePoint", 0xB7: "CueTrackPositions",
}  # fmt: skip
_WIDE = 8  # bytes of a size field, where it has this many


def decode(data: bytes) -> dict[str, Any]:
    return {"elements": _elements(data)}


def encode(document: Any) -> bytes:
    return b"".join(map(_element, entries(fields(document).get("elements"))))


def _elements(data: bytes) -> list[dict[str, Any]]:
    elements, place = [], 0
    while place < len(data):
        id_size = _width(data[place])
        id, size_at = int.from_bytes(data[place : place + id_size], "big"), place + id_size
        if id_size > 4 or size_at >= len(data) or (width := _width(data[size_at])) > _WIDE:
            break
        size = int.from_bytes(data[size_at : size_at + width], "big") - (1 << 7 * width)
        start = size_at + width
        if size < 0 or start + size > len(data):  # of unknown size: kept as it is
            break
        body = data[start : start + size]
        one: dict[str, Any] = {"id": id, "name": _NESTED.get(id, ""), "width": width, "size": None}
        elements.append(one | ({"elements": _elements(body)} if id in _NESTED else {"data": body}))
        place = start + size
    if place < len(data):
        elements.append({"data": data[place:]})
    return elements


def _element(one: Any) -> bytes:
    one = fields(one)
    body = encode(one) if "elements" in one else octets(one.get("data", b""))
    if "id" not in one:
        return body
    id, width = whole(one["id"]) % (1 << 32), 1 + (whole(one.get("width", 1)) - 1) % _WIDE
    size = len(body) if one.get("size") is None else whole(one["size"])
    head = id.to_bytes(max(1, (id.bit_length() + 7) // 8), "big")
    return head + integer((1 << 7 * width) | size % (1 << 7 * width), width) + body


def _width(first: int) -> int:
    """Return the number of bytes of a number that begins with a byte."""
    return 9 - first.bit_length()
