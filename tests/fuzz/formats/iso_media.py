"""ISO media files: boxes (ISO/IEC 14496-12). AVIF and HEIC pictures are some; so are MP4 videos."""

from __future__ import annotations

from typing import Any

from fuzz.formats import drawing, saved
from fuzz.records import Record, entries, fields, integer, octets

CONTAINERS = ("moov", "trak", "mdia", "minf", "stbl", "dinf", "edts", "iprp", "ipco", "meta")
_FULL = Record(">", version=1, flags=3)
_FULL_CONTAINERS = ("meta",)  # the boxes follow a version
RECORDS = {
    "ispe": Record(">", version=1, flags=3, width=4, height=4),
    "pitm": Record(">", version=1, flags=3, item=2),
    "irot": Record(">", angle=1),
    "imir": Record(">", axis=1),
    "colr": Record(">", kind=4, primaries=2, transfer=2, matrix=2, range=1),
    "iloc": Record(">", version=1, flags=3, sizes=2, items=2),
    "infe": Record(">", version=1, flags=3, item=2, protection=2, kind=4),
    "ipma": Record(">", version=1, flags=3, count=4, item=2, associations=1),
}


def decode(data: bytes) -> dict[str, Any]:
    return {"boxes": _boxes(data)}


def encode(document: Any) -> bytes:
    return b"".join(map(_box, entries(fields(document).get("boxes"))))


def _boxes(data: bytes) -> list[dict[str, Any]]:
    boxes, start = [], 0
    while start + 8 <= len(data):
        size, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8].decode("latin-1")
        if size < 8:  # to the end of the file, or of 64 bits: kept as it is
            break
        body = data[start + 8 : start + size]
        box: dict[str, Any] = {"type": kind, "size": None}
        record = _FULL if kind in _FULL_CONTAINERS else RECORDS.get(kind)
        if record:
            box["fields"] = record.unpack(body)
            body = body[record.size :]
        if kind in CONTAINERS:
            box["boxes"] = _boxes(body)
        else:
            box["data"] = body
        boxes.append(box)
        start += size
    if start < len(data):
        boxes.append({"raw": data[start:]})
    return boxes


def _box(box: Any) -> bytes:
    if not isinstance(box, dict):
        return octets(box)
    if "raw" in box:
        return octets(box["raw"])
    name = box.get("type", "")
    kind = (name.encode("latin-1", "replace") if isinstance(name, str) else octets(name))[:4].ljust(4)
    body = b""
    if "fields" in box:
        body += RECORDS.get(kind.decode("latin-1"), _FULL).pack(box["fields"])
    body += encode(box) if "boxes" in box else octets(box.get("data", b""))
    size = box.get("size")
    return integer(len(body) + 8 if size is None else size, 4) + kind + body


def originals() -> dict[str, bytes]:
    """Return AVIF and HEIC files, as far as this Pillow can write them."""
    from PIL import features

    files = {}
    if features.check("avif"):
        exif = drawing().getexif()
        exif[0x0112] = 6
        files["avif"] = saved(drawing("RGBA"), "AVIF", quality=60, speed=10)
        files["avif turned"] = saved(drawing(), "AVIF", exif=exif, speed=10)
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        files["heic"] = saved(drawing(), "HEIF", quality=60)
    except (ImportError, RuntimeError, OSError):  # it can read, but not write
        pass
    return files
