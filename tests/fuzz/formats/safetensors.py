"""Safetensors: the length of a JSON header, the header, the data of the tensors."""

from __future__ import annotations

import json
from typing import Any

from fuzz.formats import json_text
from fuzz.records import fields, integer, octets


def decode(data: bytes) -> dict[str, Any]:
    start = 8 + int.from_bytes(data[:8], "little")
    return {"length": None, "tensors": json.loads(data[8:start]), "data": data[start:]}


def encode(document: Any) -> bytes:
    document = fields(document)
    header = json_text.encode(document.get("tensors"))
    length = document.get("length")
    return integer(len(header) if length is None else length, 8, "<") + header + octets(document.get("data", b""))
