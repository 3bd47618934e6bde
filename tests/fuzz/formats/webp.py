"""WebP: RIFF chunks (RFC 9649)."""

from __future__ import annotations

from typing import Any

from fuzz.formats import drawing, saved
from fuzz.records import Record, entries, fields, integer, octets

RECORDS = {
    "VP8X": Record("<", flags=1, reserved=3, width=3, height=3),
    "ANIM": Record("<", background=4, loops=2),
    "ANMF": Record("<", x=3, y=3, width=3, height=3, duration=3, flags=1),
    "ALPH": Record("<", flags=1),
    "VP8 ": Record("<", tag=3, start=3, width=2, height=2),
    "VP8L": Record("<", signature=1, bits=4),
}


def decode(data: bytes) -> dict[str, Any]:
    return {"riff": "RIFF", "size": None, "form": "WEBP", "chunks": _chunks(data[12:])}


def encode(document: Any) -> bytes:
    document = fields(document)
    body = octets(document.get("form", "")) + _joined(document.get("chunks"))
    size = document.get("size")
    return octets(document.get("riff", ""))[:4] + integer(len(body) if size is None else size, 4, "<") + body


def _chunks(data: bytes) -> list[dict[str, Any]]:
    chunks, start = [], 0
    while start + 8 <= len(data):
        kind = data[start : start + 4].decode("latin-1")
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        body = data[start + 8 : start + 8 + length]
        chunk: dict[str, Any] = {"type": kind, "size": None}
        record = RECORDS.get(kind)
        if record:
            chunk["fields"] = record.unpack(body)
            body = body[record.size :]
        if kind == "ANMF":
            chunk["chunks"] = _chunks(body)
        else:
            chunk["data"] = body
        chunks.append(chunk)
        start += 8 + length + length % 2
    return chunks


def _joined(chunks: Any) -> bytes:
    return b"".join(map(_chunk, entries(chunks)))


def _chunk(chunk: Any) -> bytes:
    if not isinstance(chunk, dict):
        return octets(chunk)
    name = chunk.get("type", "")
    kind = (name.encode("latin-1", "replace") if isinstance(name, str) else octets(name))[:4].ljust(4)
    body = b""
    if "fields" in chunk:
        body += RECORDS.get(kind.decode("latin-1"), RECORDS["VP8X"]).pack(chunk["fields"])
    body += _joined(chunk["chunks"]) if "chunks" in chunk else octets(chunk.get("data", b""))
    size = chunk.get("size")
    return kind + integer(len(body) if size is None else size, 4, "<") + body + b"\0" * (len(body) % 2)


def originals() -> dict[str, bytes]:
    frames = [drawing("RGBA"), drawing("RGBA").rotate(90)]
    exif = drawing().getexif()
    exif[0x0112] = 8
    return {
        "lossy": saved(drawing(), "WEBP", quality=70),
        "lossless": saved(drawing(), "WEBP", lossless=True),
        "alpha": saved(drawing("RGBA"), "WEBP", quality=70),
        "turned": saved(drawing(), "WEBP", exif=exif),
        "animated": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=100),
    }
