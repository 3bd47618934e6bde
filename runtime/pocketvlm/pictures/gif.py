"""Open GIF files, and count their frames without decoding them, as far as anyone needs them (GIF89a)."""

from __future__ import annotations

from functools import partial
from typing import IO

from pocketvlm.pictures.opened import MAX_PICTURES, Opened, exif_orientation

_IMAGE, _EXTENSION, _END = b",", b"!", b";"
_HEADER, _DESCRIPTOR = 13, 9  # bytes; the third last of the one and the last of the other say whether colours follow
_MAX_BLOCKS = 4_000_000  # a file of 64 MiB has 260,000 where they are full


def open_gif(file: IO[bytes]) -> Opened:
    """Open the file, which begins at its current position. Raises what Pillow raises for a damaged one."""
    from PIL.GifImagePlugin import GifImageFile

    start = file.tell()
    image = GifImageFile(file)
    orientation = partial(exif_orientation, image.getexif)

    def load() -> GifImageFile:
        image.load()
        return image

    def select(number: int) -> Opened:
        image.seek(number)
        return Opened(image.size, load, orientation=orientation)

    return Opened(image.size, load, count=partial(_count, file, start), select=select, orientation=orientation)


def _count(file: IO[bytes], start: int) -> int:
    """Return the number of frames, at most one more than MAX_PICTURES. A file that is cut ends there.

    Pillow reads a file of millions of frames to its end to count them. Raises ValueError for one of endless blocks.
    """
    file.seek(start)
    _skip_colours(file, file.read(_HEADER)[-3:-2])
    count = blocks = 0
    while count <= MAX_PICTURES:
        kind = file.read(1)
        if kind == _IMAGE:
            descriptor = file.read(_DESCRIPTOR)
            _skip_colours(file, descriptor[-1:])
            if not file.read(1):  # the size of codes
                return count
            count += 1
        elif kind == _EXTENSION:
            file.read(1)
        elif kind in (_END, b""):
            return count
        blocks += 1 + (_skip_data(file) if kind in (_IMAGE, _EXTENSION) else 0)  # Pillow skips other bytes, too
        if blocks > _MAX_BLOCKS:
            raise ValueError("it has too many blocks")
    return count


def _skip_data(file: IO[bytes]) -> int:
    """Skip the blocks of an image or extension, and return their number."""
    for number in range(_MAX_BLOCKS):
        if (size := file.read(1)) in (b"\0", b""):
            return number
        file.seek(size[0], 1)
    return _MAX_BLOCKS


def _skip_colours(file: IO[bytes], flags: bytes) -> None:
    """Skip a table of colours, if `flags` say that there is one."""
    if flags and flags[0] & 0x80:
        file.seek(3 << ((flags[0] & 7) + 1), 1)
