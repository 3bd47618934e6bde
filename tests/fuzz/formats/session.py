"""Session files (pocketvlm.chat.session): a hash over the length of a JSON object, the object and its binary parts."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fuzz.formats import json_text
from fuzz.records import entries, fields, integer, octets

MAGIC = b"pocketvlm session 1\n"
_HASH = 32  # bytes


def decode(data: bytes) -> dict[str, Any]:
    rest = data[len(MAGIC) + _HASH :]
    start = 8 + int.from_bytes(rest[:8], "little")
    header = json.loads(rest[8:start])
    parts = []
    for size in (*header["cache"]["sizes"], *header["pictures"]):
        parts.append(rest[start : start + size])
        start += size
    return {"magic": MAGIC, "hash": None, "length": None, "header": header, "parts": parts}


def encode(document: Any) -> bytes:
    document = fields(document)
    text = json_text.encode(document.get("header"))
    length = document.get("length")
    rest = integer(len(text) if length is None else length, 8, "<") + text
    rest += b"".join(map(octets, entries(document.get("parts"))))
    digest = document.get("hash")
    return (
        octets(document.get("magic", b""))
        + (hashlib.sha256(rest).digest() if digest is None else octets(digest))
        + rest
    )
