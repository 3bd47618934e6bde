"""Write keys of GGUF files with the types that llama.cpp expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Value = int | float | bool | str | Sequence[int] | Sequence[float] | Sequence[str]


def add_value(writer: Any, key: str, value: Value) -> None:
    """Add a key to `writer`, a gguf.GGUFWriter: integers as uint32, floats as float32, sequences as arrays."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))
