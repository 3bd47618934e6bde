"""JPEG: segments (ITU-T T.81, annex B), with the EXIF data of APP1 as a TIFF file."""

from __future__ import annotations

from typing import Any

from fuzz.formats import drawing, saved, tiff
from fuzz.records import Record, entries, fields, integer, octets

FRAME = Record(">", precision=1, height=2, width=2, components=1)
COMPONENT = Record(">", id=1, sampling=1, table=1)
SCAN_COMPONENT = Record(">", id=1, tables=1)
SCAN_END = Record(">", start=1, end=1, approximation=1)
RESTART = Record(">", interval=2)
EXIF = b"Exif\0\0"
_SOI, _EOI, _SOS, _DRI, _APP1 = 0xD8, 0xD9, 0xDA, 0xDD, 0xE1
_ALONE = (_SOI, _EOI, 0x01, *range(0xD0, 0xD8))


def decode(data: bytes) -> dict[str, Any]:
    segments, start = [], 0
    while start < len(data):
        marker = data[start + 1]
        start += 2
        segment: dict[str, Any] = {"marker": marker}
        if marker not in _ALONE:
            length = int.from_bytes(data[start : start + 2], "big")
            segment |= {"length": None, **_decode_body(marker, data[start + 2 : start + length])}
            start += length
        if marker == _SOS:
            end = start
            while end < len(data) and not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
                end += 1
            segment["scan"] = data[start:end]
            start = end
        segments.append(segment)
    return {"segments": segments}


def encode(document: Any) -> bytes:
    return b"".join(map(_segment, entries(fields(document).get("segments"))))


def _decode_body(marker: int, body: bytes) -> dict[str, Any]:
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
        components = [COMPONENT.unpack(body[at : at + 3]) for at in range(FRAME.size, len(body), 3)]
        return {"frame": FRAME.unpack(body), "components": components}
    if marker == _SOS:
        inner = [SCAN_COMPONENT.unpack(body[at : at + 2]) for at in range(1, len(body) - 3, 2)]
        return {"count": body[0], "scan components": inner, "end": SCAN_END.unpack(body[-3:])}
    if marker == _DRI:
        return {"restart": RESTART.unpack(body)}
    if marker == _APP1 and body.startswith(EXIF):
        return {"exif": tiff.decode(body[len(EXIF) :])}
    return {"data": body}


def _segment(segment: Any) -> bytes:
    if not isinstance(segment, dict):
        return octets(segment)
    head = b"\xff" + integer(segment.get("marker"), 1)
    if "length" not in segment:
        return head
    body = b""
    for name, value in segment.items():
        if name == "frame":
            body += FRAME.pack(value)
        elif name == "components":
            body += b"".join(map(COMPONENT.pack, entries(value)))
        elif name == "count":
            body += integer(value, 1)
        elif name == "scan components":
            body += b"".join(map(SCAN_COMPONENT.pack, entries(value)))
        elif name == "end":
            body += SCAN_END.pack(value)
        elif name == "restart":
            body += RESTART.pack(value)
        elif name == "exif":
            body += EXIF + tiff.encode(value)
        elif name not in ("marker", "length", "scan"):
            body += octets(value)
    length = segment["length"]
    return head + integer(len(body) + 2 if length is None else length, 2) + body + octets(segment.get("scan", b""))


def originals() -> dict[str, bytes]:
    exif = drawing().getexif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    return {
        "rgb": saved(drawing(), "JPEG", quality=80),
        "progressive": saved(drawing(), "JPEG", progressive=True, subsampling=0),
        "grey": saved(drawing("L"), "JPEG"),
        "cmyk": saved(drawing("CMYK"), "JPEG"),
        "turned": saved(drawing(), "JPEG", exif=exif, dpi=(72, 72)),
        "restarts": saved(drawing(), "JPEG", restart_marker_rows=1),
    }
