"""Open JPEG files that viewers show and Pillow refuses: faulty metadata, bytes between segments, no end.

Segments and scans: ITU-T T.81, annex B. Several pictures in one file: CIPA DC-007 (MPF).
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO, TYPE_CHECKING

from pocketvlm.pictures.opened import Opened, exif_orientation, splice

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile

_START_OF_SCAN, _END_OF_IMAGE, _RESTART_INTERVAL, _COMMENT = 0xDA, 0xD9, 0xDD, 0xFE
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_MAX_PADDING = 1 << 16  # bytes that stand between two segments and belong to neither
_MAX_SEGMENTS = 1 << 16
_MAX_CUT = 256 << 20  # bytes of a cut file that we try to save
_MAX_MISSING = 0.01  # share of the picture, or one block; more than that is a broken download
_BLOCK = 16  # the most rows and columns of a coded block
_SMOOTHED = 4  # columns and rows before it that depend on it
_FILLER = b"\xaa\x55" * 2048  # codes of any picture
_ORIENTATION = 0x0112
_GAIN_MAPS = (b"hdrgm", b"hdrgainmap", b"urn:iso:std:iso:ts:21496")


def open_jpeg(file: IO[bytes]) -> Opened:
    """Open the file, which begins at its current position. Raises what Pillow raises for a damaged one."""
    opened, places = _open_at(file, file.tell())

    def select(number: int) -> Opened:
        one, _ = _open_at(file, places[number])
        return replace(one, pages=len(places))

    return replace(opened, pages=len(places), count=lambda: len(places), select=select)


def jpeg_frame(file: IO[bytes]) -> tuple[int, bytes]:
    """Return the kind of a JPEG file's frame (0xC0 and following; 0 if it has none) and the body of its header."""
    header = _parse(file)
    return header.kind, header.frame


def picture_pieces(file: IO[bytes]) -> tuple[list[bytes | range], int]:
    """Return what of a JPEG file makes its picture, without any metadata, and its orientation, from 1 to 8.

    Raises what Pillow raises for a damaged file.
    """
    pieces = _parse(file).pieces
    orientation = _image(file, pieces).getexif().get(_ORIENTATION, 1)

    def is_metadata(piece: bytes | range) -> bool:
        if isinstance(piece, bytes):
            return False
        file.seek(piece.start + 1)
        return file.read(1) == b"\xe1"

    return [piece for piece in pieces if not is_metadata(piece)], orientation if isinstance(orientation, int) else 1


def _open_at(file: IO[bytes], start: int) -> tuple[Opened, list[int]]:
    """Open the picture that begins at `start`, and return the places of all pictures that it names."""
    file.seek(start)
    header = _parse(file)
    image = _image(file, header.pieces)
    notes: list[str] = []

    def load() -> JpegImageFile:
        try:
            image.load()
        except OSError:
            file.seek(start)
            saved = _save_cut(file, header, notes)
            if saved is None:
                raise
            return saved
        return image

    orientation = partial(exif_orientation, image.getexif)
    return Opened(image.size, load, notes=notes, orientation=orientation), header.places or [start]


def _image(file: IO[bytes], pieces: list[bytes | range]) -> JpegImageFile:
    from PIL.JpegImagePlugin import JpegImageFile

    return JpegImageFile(splice(file, pieces))


# ---- segments


@dataclass
class _Header:
    """What is needed as pieces of the file, the last of which has the scans; where pictures begin, if there is a list.

    `frame` is the body of the frame header, `kind` the code of its marker. `interval` counts the blocks between two
    restart markers, if not 0.
    """

    pieces: list[bytes | range]
    places: list[int] = field(default_factory=list)
    frame: bytes = b""
    kind: int = 0
    interval: int = 0


def _parse(file: IO[bytes]) -> _Header:
    start = file.tell()
    position = start + 2
    end = file.seek(0, io.SEEK_END)
    header = _Header([b"\xff\xd8"])
    for _ in range(_MAX_SEGMENTS):
        marker = _next_marker(file, position)
        if marker is None:
            break
        position = marker
        file.seek(position)
        code, length = struct.unpack(">xBH", file.read(4).ljust(4, b"\0"))
        if code in _ALONE:
            position += 2
            continue
        if code in (_START_OF_SCAN, _END_OF_IMAGE) or length < 2 or position + 2 + length > end:
            break
        if code in _FRAMES:
            header.frame, header.kind = file.read(length - 2), code
        if code == _RESTART_INTERVAL:
            header.interval = int.from_bytes(file.read(2), "big")
        if 0xE0 <= code <= 0xEF or code == _COMMENT:
            body = file.read(length - 2)
            if code == 0xE2 and body.startswith(b"MPF\0"):
                header.places = _places(file, start, position + 8, body[4:])
            keep = _is_needed(code, body)
        else:
            keep = True
        if keep:
            header.pieces.append(range(position, position + 2 + length))
        position += 2 + length
    header.pieces.append(range(position, end))
    return header


def _next_marker(file: IO[bytes], position: int) -> int | None:
    """Return the position of the next marker, after padding."""
    for size in (64, _MAX_PADDING):
        file.seek(position)
        if match := re.search(rb"\xff[^\xff\0]", file.read(size)):
            return position + match.end() - 2
    return None


def _is_needed(code: int, body: bytes) -> bool:
    """Orientation is in APP1; APP0 and APP14 say what the colours mean. Faulty ones say nothing."""
    if code == 0xE0:
        return body.startswith(b"JFIF") and len(body) >= 12
    if code == 0xEE:
        return body.startswith(b"Adobe") and len(body) >= 12
    return code == 0xE1


def _places(file: IO[bytes], start: int, base: int, index: bytes) -> list[int]:
    """Return where the pictures begin that an MPF index lists, but for thumbnails and maps of brightness.

    Places in the index count from `base`, but the first picture, at `start`, has 0.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        directory = ImageFileDirectory_v2(index[:8])
        stream = io.BytesIO(index)
        stream.seek(directory.next)
        directory.load(stream)
        entries = directory[0xB002]
        order = "<" if index.startswith(b"II") else ">"
        places: list[int] = []
        for kind, size, offset in struct.iter_unpack(f"{order}IIIxxxx", entries[:16000]):
            if kind >> 16 & 0xFF == 1:  # a thumbnail
                continue
            file.seek(base + offset)
            if not (offset and any(name in file.read(min(size, 1 << 14)) for name in _GAIN_MAPS)):
                places.append(base + offset if offset else start)
        return places
    except Exception:  # a picture with damaged metadata is still usable
        return []


# ---- files that end early


def _save_cut(file: IO[bytes], header: _Header, notes: list[str]) -> JpegImageFile | None:
    """Decode a file that ends early; None if more than its end is missing.

    The decoder invents what is missing. What it invents depends on the bytes that we put behind the file's own, so the
    first difference between two such decodings is where the picture really ends.
    """
    from PIL import ImageChops

    scans = header.pieces[-1]
    if not isinstance(scans, range) or len(scans) > _MAX_CUT:
        return None
    file.seek(scans.start)
    data = file.read(len(scans)).rstrip(b"\xff")
    if not _is_complete(data, header.frame) or not _has_restarts(data, header):
        return None
    known = [*header.pieces[:-1], data]
    image = _image(file, [*known, b"\xff\xd9"])
    other = _image(file, [*known, _FILLER, b"\xff\xd9"])
    image.load()
    other.load()

    def difference(top: int, bottom: int) -> tuple[int, int, int, int] | None:
        rows = (0, top, image.width, min(bottom, image.height))
        return ImageChops.difference(image.crop(rows), other.crop(rows)).getbbox()

    width, height = image.size
    for top in range(0, height, _BLOCK):
        box = difference(top, top + _BLOCK)
        if box is None:
            continue
        first = top + box[1]
        first += -first % 8 if -first % 8 <= _SMOOTHED else 0
        box = difference(first, first + _BLOCK) or (0, 0, 0, 0)
        rows = max(0, min(_BLOCK, height - first))
        missing = rows * (width - box[0]) + max(0, height - first - rows) * width
        if missing > max(_MAX_MISSING * width * height, _BLOCK * (_BLOCK + _SMOOTHED)):
            return None
        notes.append("the file ends early: a little of its lower end is missing")
        break
    return image


def _has_restarts(scans: bytes, header: _Header) -> bool:
    """Return whether the last restart marker is there. What is between two does not depend on what follows them."""
    if not header.interval:
        return True
    height, width, components = struct.unpack_from(">xHHB", header.frame)
    sampling = [header.frame[start] for start in range(7, 6 + 3 * components, 3)]
    across, down = (8 * max(factors) for factors in zip(*((value >> 4, value & 15) for value in sampling), strict=True))
    if components == 1:
        across = down = 8
    blocks = -(-width // across) * -(-height // down)
    restarts = len(re.findall(rb"\xff[\xd0-\xd7]", scans))
    return scans.count(b"\xff\xda") == 1 and restarts >= -(-blocks // header.interval) - 1


def _is_complete(scans: bytes, frame: bytes) -> bool:
    """Return whether every coefficient of every component has its last bit in one of the scans that were begun."""
    missing = {frame[start]: set(range(64)) for start in range(6, len(frame) - 2, 3)}
    for match in re.finditer(rb"\xff\xda", scans):
        count = int.from_bytes(scans[match.end() + 2 : match.end() + 3], "big")
        header = scans[match.end() + 3 : match.end() + 6 + 2 * count]
        if len(header) < 2 * count + 3:
            return False
        first, last, bits = header[-3:]
        for component in header[: 2 * count : 2]:
            if bits & 15 == 0:
                missing.get(component, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())
