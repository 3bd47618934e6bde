"""PNG: chunks (https://www.w3.org/TR/png-3/)."""

from __future__ import annotations

import zlib
from typing import Any

from fuzz.formats import drawing, saved
from fuzz.records import Record, entries, fields, integer, octets

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RECORDS = {
    "IHDR": Record(">", width=4, height=4, depth=1, color=1, compression=1, filter=1, interlace=1),
    "pHYs": Record(">", x=4, y=4, unit=1),
    "gAMA": Record(">", gamma=4),
    "acTL": Record(">", frames=4, plays=4),
    "fcTL": Record(">", number=4, width=4, height=4, x=4, y=4, delay=2, unit=2, dispose=1, blend=1),
}


def decode(data: bytes) -> dict[str, Any]:
    chunks, start = [], len(SIGNATURE)
    while start < len(data):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8].decode("latin-1")
        body = data[start + 8 : start + 8 + length]
        chunk: dict[str, Any] = {"type": kind, "length": None, "crc": None}
        if kind in RECORDS:
            chunk["fields"] = RECORDS[kind].unpack(body)
        else:
            chunk["data"] = body
        chunks.append(chunk)
        start += 12 + length
    return {"signature": data[: len(SIGNATURE)], "chunks": chunks}


def encode(document: Any) -> bytes:
    document = fields(document)
    return octets(document.get("signature", b"")) + b"".join(map(_chunk, entries(document.get("chunks"))))


def _chunk(chunk: Any) -> bytes:
    if not isinstance(chunk, dict):
        return octets(chunk)
    name = chunk.get("type", "")
    kind = (name.encode("latin-1", "replace") if isinstance(name, str) else octets(name))[:4].ljust(4)
    record = RECORDS.get(kind.decode("latin-1"), RECORDS["IHDR"])
    body = record.pack(chunk["fields"]) if "fields" in chunk else octets(chunk.get("data", b""))
    length = integer(len(body) if chunk.get("length") is None else chunk["length"], 4)
    crc = integer(zlib.crc32(kind + body) if chunk.get("crc") is None else chunk["crc"], 4)
    return length + kind + body + crc


def originals() -> dict[str, bytes]:
    frames = [drawing(), drawing().rotate(90, expand=False)]
    return {
        "rgb": saved(drawing(), "PNG", dpi=(300, 300)),
        "grey": saved(drawing("L"), "PNG"),
        "bits": saved(drawing("1"), "PNG"),
        "palette": saved(drawing("P"), "PNG", transparency=3),
        "alpha": saved(drawing("RGBA"), "PNG"),
        "deep": saved(drawing("I;16"), "PNG"),
        "animated": saved(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=100),
    }
