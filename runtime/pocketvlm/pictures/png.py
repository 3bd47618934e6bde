"""Open PNG files without the chunks that no pixel depends on.

Pillow refuses a sound picture for the size of its metadata or for a fault in it. Viewers skip such chunks.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import IO, TYPE_CHECKING

from pocketvlm.pictures.opened import Opened, UnsupportedKindError, exif_orientation, splice

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngStream

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CRITICAL = {b"IHDR", b"PLTE", b"IDAT"}
_ALPHA = b"tRNS"
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_EXIF = b"eXIf"
# Orientation may stand in these texts, too.
_KEYWORDS = {b"XML:com.adobe.xmp", b"Raw profile type exif", b"Raw profile type APP1"}
_MAX_METADATA = 1 << 20  # bytes of a chunk; EXIF and XMP with an orientation have a few kilobytes
_MAX_HEADER = 1 << 16  # bytes of IHDR or PLTE, which need 13 and 768


def open_png(file: IO[bytes]) -> Opened:
    """Open the file, which begins at its current position. Raises what Pillow raises for a damaged one."""
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile

    start = file.tell()
    image = PngImageFile(splice(file, _pieces(file, start)))

    def orientation_of(opened: PngImageFile) -> Callable[[], int]:
        # The method of PngImageFile decodes the pixels, in case there is metadata behind them. Here there is none.
        return partial(exif_orientation, partial(Image.Image.getexif, opened))

    def load() -> PngImageFile:
        image.load()
        return image

    animation: PngImageFile | None = None

    def frame(number: int) -> PngImageFile:
        nonlocal animation
        # Pillow finds no frame any more after it has gone back to an earlier one.
        if animation is None or number < animation.tell():
            animation = PngImageFile(splice(file, _pieces(file, start, animated=True)))
        animation.seek(number)
        return animation

    def count() -> int:
        return getattr(frame(0), "n_frames", 1)

    def select(number: int) -> Opened:
        frames = frame(number)

        def load_frame() -> PngImageFile:
            frames.load()
            return frames

        return Opened(frames.size, load_frame, orientation=orientation_of(frames))

    return Opened(image.size, load, count=count, select=select, orientation=orientation_of(image))


def _pieces(file: IO[bytes], start: int, *, animated: bool = False) -> list[bytes | range]:
    """Return the signature and the chunks that are needed, as pieces of the file; `animated`: for all frames.

    Metadata comes before the pixels, wherever it is in the file.
    """
    from PIL.PngImagePlugin import PngStream

    stream = PngStream(io.BytesIO())
    end = file.seek(0, io.SEEK_END)
    position = start + len(SIGNATURE)
    pieces = [range(start, position)]
    texts, has_exif = set(_KEYWORDS), False  # those that are still to come, once each
    pixels = 0  # the place of the first chunk of pixels among the pieces
    while position + 8 <= end:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"CgBI":
            raise UnsupportedKindError("PNG in Apple's own form (CgBI)")
        chunk = range(position, min(position + 12 + length, end))
        position += 12 + length
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            pixels = pixels or len(pieces)
        if kind == b"IDAT" or (animated and kind in _ANIMATION) or (kind in _CRITICAL and length > _MAX_HEADER):
            pieces.append(chunk)
        elif kind in _CRITICAL:
            data = file.read(length)
            _accepts(stream, kind, data)
            pieces.append(chunk)
        elif length <= _MAX_METADATA and (kind in _TEXTS or kind in (_ALPHA, _EXIF)):
            data, checksum = file.read(length), file.read(4)
            keyword = data.partition(b"\0")[0]
            if (kind in _TEXTS and keyword not in texts) or (kind == _EXIF and has_exif):
                continue
            if struct.pack(">I", zlib.crc32(kind + data)) == checksum and _accepts(stream, kind, data):
                texts.discard(keyword)
                has_exif = has_exif or kind == _EXIF
                is_late = pixels and kind != _ALPHA
                pieces.insert(pixels if is_late else len(pieces), chunk)
                pixels += bool(is_late)
    return [*_joined(pieces), struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))]


def _joined(pieces: list[range]) -> list[range]:
    """Join pieces that follow each other. A file may have a million chunks of pixels."""
    joined: list[range] = []
    for piece in pieces:
        if joined and joined[-1].stop == piece.start:
            joined[-1] = range(joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined


def _accepts(stream: PngStream, kind: bytes, data: bytes) -> bool:
    """Return whether Pillow's reader of such chunks takes it. The stream knows what earlier chunks said."""
    if kind == _ALPHA and stream.im_mode == "P" and len(data) > 256:
        return False
    stream.fp = io.BytesIO(data)
    try:
        stream.call(kind, 0, len(data))
    except Exception:  # Pillow's readers raise errors of any kind
        return False
    return True
