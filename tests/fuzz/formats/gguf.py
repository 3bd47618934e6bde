"""GGUF: metadata, tensors, data (ggml's docs/gguf.md).

A metadata value of another type than its entry's takes the type that fits, as a file from another converter would have
it; the entry's type is also changed alone.
"""

from __future__ import annotations

import struct
from typing import Any

from fuzz.records import entries, fields, integer, number, octets, whole

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = 4, 5, 6, 7, 8, 9, 10, 11, 12
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, INT32: 4, BOOL: 1, UINT64: 8, INT64: 8}
_FLOATS = {FLOAT32: "<f", FLOAT64: "<d"}
_SIGNED = (1, 3, INT32, INT64)
_ALIGNMENT = 32  # bytes


def decode(data: bytes) -> dict[str, Any]:
    reader = _Reader(data)
    magic, version = reader.take(4).decode(), reader.number(4)
    n_tensors, n_metadata = reader.number(8), reader.number(8)
    metadata = [reader.entry() for _ in range(n_metadata)]
    tensors = [reader.tensor() for _ in range(n_tensors)]
    start = -(-reader.at // _alignment(metadata)) * _alignment(metadata)
    return {
        "magic": magic,
        "version": version,
        "tensor count": None,
        "metadata count": None,
        "metadata": metadata,
        "tensors": tensors,
        "padding": None,
        "data": data[start:],
    }


def encode(document: Any) -> bytes:
    document = fields(document)
    metadata, tensors = entries(document.get("metadata")), entries(document.get("tensors"))
    parts = [octets(document.get("magic", ""))[:4], integer(document.get("version"), 4, "<")]
    for counted, count in ((tensors, document.get("tensor count")), (metadata, document.get("metadata count"))):
        parts.append(integer(len(counted) if count is None else count, 8, "<"))
    parts += [_entry(entry) for entry in metadata]
    parts += [_tensor(tensor) for tensor in tensors]
    padding = document.get("padding")
    length = -sum(map(len, parts)) % _alignment(metadata) if padding is None else whole(padding) % 4096
    return b"".join([*parts, b"\0" * length, octets(document.get("data", b""))])


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def text(self) -> str | bytes:
        data = self.take(self.number(8))
        try:
            return data.decode()
        except UnicodeDecodeError:  # tokens may be parts of characters
            return data

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == BOOL:
            return bool(self.number(1))
        if kind in _FLOATS:
            return struct.unpack(_FLOATS[kind], self.take(struct.calcsize(_FLOATS[kind])))[0]
        return self.number(_SIZES[kind], kind in _SIGNED)

    def entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"key": self.text(), "type": self.number(4)}
        if entry["type"] != ARRAY:
            return {**entry, "value": self.value(entry["type"])}
        of, count = self.number(4), self.number(8)
        return {**entry, "of": of, "count": None, "value": [self.value(of) for _ in range(count)]}

    def tensor(self) -> dict[str, Any]:
        name, dimensions = self.text(), self.number(4)
        shape = [self.number(8) for _ in range(dimensions)]
        return {"name": name, "dimensions": None, "shape": shape, "type": self.number(4), "offset": self.number(8)}


def _alignment(metadata: list[Any]) -> int:
    found = (fields(entry) for entry in metadata)
    value = next((entry.get("value") for entry in found if entry.get("key") == "general.alignment"), None)
    return value if isinstance(value, int) and 0 < value <= 4096 else _ALIGNMENT


def _entry(entry: Any) -> bytes:
    if not isinstance(entry, dict):
        return octets(entry)
    value, kind = entry.get("value"), whole(entry.get("type"))
    head = _text(entry.get("key", ""))
    if isinstance(value, list | dict):
        of = whole(entry.get("of", UINT32))
        items = entries(value)
        if "of" not in entry and items:
            of = _fitting(items[0], of)
        count = entry.get("count")
        written = len(items) if count is None else count
        body = integer(of, 4, "<") + integer(written, 8, "<") + b"".join(_value(item, of) for item in items)
        return head + integer(kind if "of" in entry else ARRAY, 4, "<") + body
    if "of" not in entry:
        kind = _fitting(value, kind)
    return head + integer(kind, 4, "<") + _value(value, kind)


def _fitting(value: Any, kind: int) -> int:
    """Return `kind` where it takes the value, or a type that does."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, str | bytes):
        return STRING
    if isinstance(value, float):
        return kind if kind in _FLOATS else FLOAT32
    if isinstance(value, int) and (kind in _FLOATS or kind in (STRING, BOOL, ARRAY)):
        return INT32 if value < 0 else UINT32
    return kind


def _value(value: Any, kind: int) -> bytes:
    if kind == STRING:
        return _text(value)
    if kind in _FLOATS:
        return number(value, _FLOATS[kind])
    return integer(value, _SIZES.get(kind, 4), "<")


def _text(value: Any) -> bytes:
    data = octets(value)
    return integer(len(data), 8, "<") + data


def _tensor(tensor: Any) -> bytes:
    if not isinstance(tensor, dict):
        return octets(tensor)
    shape, dimensions = entries(tensor.get("shape")), tensor.get("dimensions")
    return b"".join(
        [
            _text(tensor.get("name", "")),
            integer(len(shape) if dimensions is None else dimensions, 4, "<"),
            *(integer(extent, 8, "<") for extent in shape),
            integer(tensor.get("type"), 4, "<"),
            integer(tensor.get("offset"), 8, "<"),
        ]
    )
