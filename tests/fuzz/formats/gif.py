"""GIF: screen descriptor, blocks (https://www.w3.org/Graphics/GIF/spec-gif89a.txt)."""

from __future__ import annotations

from typing import Any

from fuzz.formats import drawing, saved
from fuzz.records import Record, entries, fields, integer, octets

SCREEN = Record("<", width=2, height=2, flags=1, background=1, aspect=1)
IMAGE = Record("<", x=2, y=2, width=2, height=2, flags=1)
_IMAGE, _EXTENSION, _END = 0x2C, 0x21, 0x3B


def decode(data: bytes) -> dict[str, Any]:
    screen, start = SCREEN.unpack(data[6:]), 6 + SCREEN.size
    palette = data[start : start + _palette_size(screen["flags"])]
    start += len(palette)
    blocks = []
    while start < len(data):
        block: dict[str, Any] = {"kind": data[start]}
        start += 1
        if block["kind"] == _IMAGE:
            block["image"] = IMAGE.unpack(data[start:])
            start += IMAGE.size
            block["palette"] = data[start : start + _palette_size(block["image"]["flags"])]
            start += len(block["palette"])
        if block["kind"] in (_IMAGE, _EXTENSION):
            block["code"] = data[start]  # the size of codes, or the kind of extension
            block["pieces"], start = _pieces(data, start + 1)
            block["end"] = 0
        blocks.append(block)
    return {"signature": data[:6].decode("latin-1"), "screen": screen, "palette": palette, "blocks": blocks}


def encode(document: Any) -> bytes:
    document = fields(document)
    head = octets(document.get("signature", ""))[:6] + SCREEN.pack(document.get("screen"))
    return head + octets(document.get("palette", b"")) + b"".join(map(_block, entries(document.get("blocks"))))


def _palette_size(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _pieces(data: bytes, start: int) -> tuple[list[dict[str, Any]], int]:
    pieces = []
    while data[start]:
        pieces.append({"length": None, "data": data[start + 1 : start + 1 + data[start]]})
        start += 1 + data[start]
    return pieces, start + 1


def _block(block: Any) -> bytes:
    if not isinstance(block, dict):
        return octets(block)
    data = integer(block.get("kind"), 1)
    if "image" in block:
        data += IMAGE.pack(block["image"]) + octets(block.get("palette", b""))
    if "pieces" in block:
        data += integer(block.get("code"), 1)
        for piece in entries(block["pieces"]):
            body, length = octets(fields(piece).get("data", b"")), fields(piece).get("length")
            data += integer(len(body) if length is None else length, 1) + body
        data += integer(block.get("end"), 1)
    return data


def originals() -> dict[str, bytes]:
    frames = [drawing("P"), drawing("P").rotate(90)]
    return {
        "still": saved(drawing("P"), "GIF"),
        "transparent": saved(drawing("P"), "GIF", transparency=2, interlace=1),
        "animated": saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0),
    }
