"""Pack values of any type into binary fields: what a mutation put there must fit somehow."""

from __future__ import annotations

import math
import struct
from typing import Any


def integer(value: Any, size: int, order: str = ">") -> bytes:
    """Pack into `size` bytes, modulo 2 ** (8 * size)."""
    return (whole(value) % (1 << 8 * size)).to_bytes(size, "big" if order == ">" else "little")


def whole(value: Any) -> int:
    """Return an integer for a value of any type."""
    if isinstance(value, float):
        return int(value) if math.isfinite(value) else -1
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str | bytes):
        return int.from_bytes(octets(value)[:8], "big")
    return len(value) if isinstance(value, dict | list) else 0


def number(value: Any, layout: str) -> bytes:
    """Pack into a float field, `<f` or `<d`."""
    if not isinstance(value, float):
        value = whole(value)
    try:
        return struct.pack(layout, value)
    except OverflowError:
        return struct.pack(layout, math.inf)


def octets(value: Any) -> bytes:
    """Return bytes for a value of any type; text in UTF-8, lone surrogates too."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else repr(value)[:4000]).encode("utf-8", "surrogatepass")


def entries(value: Any) -> list[Any]:
    """Return the items of a list, or of what a mutation put in its place."""
    if isinstance(value, list):
        return value
    return [*value.values()] if isinstance(value, dict) else [] if value is None else [value]


def fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class Record:
    """A fixed sequence of named integers, such as `Record(">", width=4, height=4, depth=1)`, with sizes in bytes."""

    def __init__(self, order: str, **sizes: int) -> None:
        self._order = order
        self._sizes = sizes
        self.size = sum(sizes.values())

    def unpack(self, data: bytes) -> dict[str, int]:
        values, start = {}, 0
        for name, size in self._sizes.items():
            values[name] = int.from_bytes(data[start : start + size], "big" if self._order == ">" else "little")
            start += size
        return values

    def pack(self, values: Any) -> bytes:
        """Pack the fields that are there, in order: a removed one shifts the others."""
        values = fields(values)
        return b"".join(
            integer(values[name], size, self._order) for name, size in self._sizes.items() if name in values
        )
