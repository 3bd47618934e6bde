"""The older format of importance matrices: a count, then names with their values (llama.cpp's tools/imatrix)."""

from __future__ import annotations

from typing import Any

from fuzz.records import entries, fields, integer, octets


def decode(data: bytes) -> dict[str, Any]:
    count, start = _number(data, 0), 4
    listed = []
    for _ in range(count):
        length = _number(data, start)
        name = data[start + 4 : start + 4 + length].decode()
        start += 4 + length
        calls, size = _number(data, start), _number(data, start + 4)
        values = data[start + 8 : start + 8 + 4 * size]
        listed.append({"name length": None, "name": name, "calls": calls, "size": None, "values": values})
        start += 8 + 4 * size
    return {"count": None, "entries": listed, "rest": data[start:]}


def encode(document: Any) -> bytes:
    document = fields(document)
    listed, count = entries(document.get("entries")), document.get("count")
    data = integer(len(listed) if count is None else count, 4, "<")
    return data + b"".join(map(_entry, listed)) + octets(document.get("rest", b""))


def _entry(entry: Any) -> bytes:
    if not isinstance(entry, dict):
        return octets(entry)
    name, values = octets(entry.get("name", "")), octets(entry.get("values", b""))
    length, size = entry.get("name length"), entry.get("size")
    head = integer(len(name) if length is None else length, 4, "<") + name + integer(entry.get("calls"), 4, "<")
    return head + integer(len(values) // 4 if size is None else size, 4, "<") + values


def _number(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + 4], "little")
