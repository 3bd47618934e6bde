"""BMP: two headers, a palette, pixels."""

from __future__ import annotations

from typing import Any

from fuzz.formats import drawing, saved
from fuzz.records import Record, fields, octets

FILE = Record("<", magic=2, size=4, reserved=4, offset=4)
INFO = Record("<", size=4, width=4, height=4, planes=2, bits=2, compression=4, bytes=4, x=4, y=4, colors=4, important=4)


def decode(data: bytes) -> dict[str, Any]:
    head = FILE.unpack(data)
    end = FILE.size + INFO.size
    return {
        "file": head,
        "info": INFO.unpack(data[FILE.size : end]),
        "palette": data[end : head["offset"]],
        "pixels": data[head["offset"] :],
    }


def encode(document: Any) -> bytes:
    document = fields(document)
    head = FILE.pack(document.get("file")) + INFO.pack(document.get("info"))
    return head + octets(document.get("palette", b"")) + octets(document.get("pixels", b""))


def originals() -> dict[str, bytes]:
    runs = decode(saved(drawing("L"), "BMP"))
    runs["info"] |= {"compression": 1}
    runs["pixels"] = (bytes([48, 7]) + b"\0\0") * 40 + b"\0\1"  # 40 rows of one run
    return {
        "rgb": saved(drawing(), "BMP"),
        "palette": saved(drawing("P"), "BMP"),
        "bits": saved(drawing("1"), "BMP"),
        "runs": encode(runs),
    }
