"""TIFF and BigTIFF: header, directories and their values in place (TIFF 6.0, section 2). Also EXIF.

The document lists spans of the file in order: directories, and bytes between them.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile

from fuzz.formats import drawing, saved
from fuzz.records import entries, fields, integer, octets, whole

_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    11: 4,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}  # bytes of a value, by type
_MAX_LISTED = 16  # values of an entry that become numbers in the document


def decode(data: bytes) -> dict[str, Any]:
    order = ">" if data[:2] == b"MM" else "<"
    big = _number(data, 2, 2, order) == 43
    width = 8 if big else 4
    first = _number(data, 8 if big else 4, width, order)
    pieces: list[tuple[int, int, dict[str, Any]]] = []  # start, end, span
    start, seen = first, set()
    while start and start not in seen and start < len(data):
        seen.add(start)
        start = _directory(data, start, order, width, pieces)
    spans, at = [], 16 if big else 8
    for begin, end, span in sorted(pieces, key=lambda piece: piece[0]):
        if begin > at:
            spans.append({"data": data[at:begin]})
        if begin >= at:  # values may be shared
            spans.append(span)
            at = end
    if at < len(data):
        spans.append({"data": data[at:]})
    return {
        "order": data[:2].decode(),
        "magic": 43 if big else 42,
        **({"offset size": 8, "zero": 0} if big else {}),
        "first": first,
        "spans": spans,
    }


def encode(document: Any) -> bytes:
    document = fields(document)
    order = ">" if document.get("order") == "MM" else "<"
    big = "offset size" in document
    width = 8 if big else 4
    head = octets(document.get("order", ""))[:2] + integer(document.get("magic"), 2, order)
    if big:
        head += integer(document.get("offset size"), 2, order) + integer(document.get("zero"), 2, order)
    head += integer(document.get("first"), width, order)
    return head + b"".join(_span(span, order, width) for span in entries(document.get("spans")))


def _directory(data: bytes, start: int, order: str, width: int, pieces: list[tuple[int, int, dict[str, Any]]]) -> int:
    """Add the directory at `start` and the values outside of it; return where the next one begins."""
    counter = 8 if width == 8 else 2
    count = _number(data, start, counter, order)
    listed, at = [], start + counter
    for _ in range(count):
        tag, kind = _number(data, at, 2, order), _number(data, at + 2, 2, order)
        values = _number(data, at + 4, width, order)
        entry: dict[str, Any] = {"tag": tag, "type": kind, "count": values}
        inline = data[at + 4 + width : at + 4 + 2 * width]
        size = _SIZES.get(kind, 8) * values
        if size <= width and kind in (1, 3, 4, 16) and values == 1:
            used = _SIZES[kind]
            entry |= {
                "value": int.from_bytes(inline[:used], "big" if order == ">" else "little"),
                "rest": inline[used:],
            }
        elif size <= width:
            entry["inline"] = inline
        else:
            place = _number(data, at + 4 + width, width, order)
            entry["offset"] = place
            if kind in (3, 4, 16) and values <= _MAX_LISTED:
                each = _SIZES[kind]
                numbers = [_number(data, place + each * n, each, order) for n in range(values)]
                pieces.append((place, place + size, {"size": each, "numbers": numbers}))
        listed.append(entry)
        at += 4 + 2 * width
    following = _number(data, at, width, order)
    pieces.append((start, at + width, {"entries count": None, "entries": listed, "next": following}))
    return following


def _span(span: Any, order: str, width: int) -> bytes:
    if not isinstance(span, dict):
        return octets(span)
    if "numbers" in span:
        size = whole(span.get("size")) % 9
        return b"".join(integer(value, size, order) for value in entries(span["numbers"]))
    if "entries" not in span:
        return octets(span.get("data", b""))
    listed = entries(span["entries"])
    count = span.get("entries count")
    data = integer(len(listed) if count is None else count, 8 if width == 8 else 2, order)
    for item in listed:
        data += _entry(fields(item), order, width)
    return data + integer(span.get("next"), width, order)


def _entry(entry: dict[str, Any], order: str, width: int) -> bytes:
    data = integer(entry.get("tag"), 2, order) + integer(entry.get("type"), 2, order)
    data += integer(entry.get("count"), width, order)
    if "value" in entry:
        rest = octets(entry.get("rest", b""))[:width]
        return data + integer(entry["value"], width - len(rest), order) + rest
    if "inline" in entry:
        return data + octets(entry["inline"])[:width].ljust(width, b"\0")
    return data + integer(entry.get("offset"), width, order)


def _number(data: bytes, at: int, size: int, order: str) -> int:
    return int.from_bytes(data[at : at + size], "big" if order == ">" else "little")


def originals() -> dict[str, bytes]:
    rgb, grey = np.asarray(drawing()), np.asarray(drawing("L"))
    frames = [drawing("L"), drawing("L").rotate(180)]
    return {
        "rgb": saved(drawing(), "TIFF"),
        "lzw": saved(drawing(), "TIFF", compression="tiff_lzw"),
        "deflate": saved(drawing("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
        "packbits": saved(drawing("P"), "TIFF", compression="packbits"),
        "jpeg": saved(drawing(), "TIFF", compression="jpeg"),
        "fax": saved(drawing("1"), "TIFF", compression="group4"),
        "cmyk": saved(drawing("CMYK"), "TIFF"),
        "float": saved(drawing("F"), "TIFF"),
        "pages": saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "big tiles": _written(rgb, bigtiff=True, tile=(16, 16), compression="zlib", predictor=True),
        "planes": _written(rgb.transpose(2, 0, 1), planarconfig="separate", photometric="rgb", rowsperstrip=8),
        "big-endian": _written(grey.astype(">u2") * 257, byteorder=">", photometric="minisblack", rowsperstrip=8),
    }


def _written(pixels: np.ndarray, *, bigtiff: bool = False, byteorder: Any = "<", **options: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=bigtiff, byteorder=byteorder) as writer:
        writer.write(pixels, metadata=None, **{"photometric": "rgb", **options})
    return file.getvalue()
