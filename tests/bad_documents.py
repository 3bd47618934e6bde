"""Documents and videos that cannot be shown, made by hand, and how each is refused: the same everywhere."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from PIL import Image

from pdfs import pdf, rectangle

_FRAME = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"  # of 1x1 pixel


@dataclass(frozen=True)
class BadDocument:
    """`reason` follows the name of the file in the error. `options` are fields of its part and of the command line."""

    name: str
    data: bytes
    reason: str
    code: str = "invalid_image_format"
    options: dict[str, str] = field(default_factory=dict)


def bad_documents() -> list[BadDocument]:
    square = rectangle("1 0 0", 30, 30, 40, 40)
    one_broken = pdf([square] * 3).replace(b"12 0 obj\n<< /Type /Page ", b"12 0 obj\n[ /Type /Page  ")
    clip = video()
    return [
        BadDocument(
            "locked.pdf", pdf([square], password="secret"), "is encrypted; give its password", "password_required"
        ),
        BadDocument(
            "opened.pdf",
            pdf([square], password="secret"),
            "the password is wrong",
            "password_required",
            {"password": "Secret"},
        ),
        BadDocument("junk.pdf", b"%PDF-1.7\n" + b"junk " * 200, "damaged or truncated, or without pages"),
        BadDocument("none.pdf", pdf([]), "damaged or truncated, or without pages"),
        BadDocument("torn.pdf", one_broken, "page 2: damaged"),
        BadDocument(
            "poster.pdf", pdf([b""], box="[0 0 28346 500]"), "page 1: 10.0 x 0.2 m is too large", "image_too_large"
        ),
        BadDocument("book.pdf", pdf([b""] * 5000), "has 5,000 pages; a request may show at most", "image_too_large"),
        BadDocument("short.pdf", pdf([square] * 3), "there is no page 4; it has 3", "invalid_image", {"pages": "2-4"}),
        BadDocument("text.mp4", b"this is not a video", "is not a picture of a supported format"),
        BadDocument("cut.mp4", clip[:200], "damaged or truncated, or not a video"),
        BadDocument("sound.mp4", sound(), "has no pictures"),
        BadDocument("film.mkv", b"\x1a\x45\xdf\xa3" + bytes(500), "damaged or truncated, or not a video"),
        BadDocument("scan.tif", torn_scan(), "page 2: damaged", options={"pages": "2"}),
        BadDocument(
            "long.gif",
            b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + _FRAME * 10_001 + b";",
            "has more than 10,000 frames",
            "image_too_large",
            {"pages": "1"},
        ),
    ]


def video(size: tuple[int, int] = (64, 48), count: int = 12, *, format: str = "mp4", codec: str = "mpeg4") -> bytes:
    """Return a video of frames that get lighter."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for number in range(count):
            pixels = np.full((size[1], size[0], 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def sound() -> bytes:
    """Return a file of sound alone."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def torn_scan() -> bytes:
    """Return a TIFF whose second page of three is not in the file where its directory says."""
    pages = [Image.new("RGB", (64, 48), (80 * number, 0, 0)) for number in range(3)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_deflate")
    data = bytearray(file.getvalue())
    place = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[place : place + 2], "little")
    place = int.from_bytes(data[place + 2 + 12 * entries : place + 6 + 12 * entries], "little")
    for entry in range(place + 2, place + 2 + 12 * int.from_bytes(data[place : place + 2], "little"), 12):
        if data[entry : entry + 2] == b"\x11\x01":  # StripOffsets
            struct.pack_into("<I", data, entry + 8, len(data) + 1000)
    return bytes(data)
