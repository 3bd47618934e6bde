"""Open GIF files; count their frames and read their delays without decoding them, as far as needed (GIF89a)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import IO

from pocketvlm.pictures.opened import MAX_PICTURES, Opened, exif_orientation

_IMAGE, _EXTENSION, _END = b",", b"!", b";"
_CONTROL = b"\xf9"  # the extension with a frame's delay
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


def frame_delays(file: IO[bytes], start: int = 0) -> Iterator[float]:
    """Yield the seconds for which each frame is shown, 0 where the file does not say it. A file that is cut ends there.

    Raises ValueError for one of endless blocks.
    """
    file.seek(start)
    _skip_colours(file, file.read(_HEADER)[-3:-2])
    blocks, delay = 0, 0.0
    while (kind := file.read(1)) not in (_END, b""):
        if kind == _IMAGE:
            descriptor = file.read(_DESCRIPTOR)
            _skip_colours(file, descriptor[-1:])
            if not file.read(1):  # the size of codes
                return
            yield delay
            delay = 0.0
        elif kind == _EXTENSION and file.read(1) == _CONTROL and (size := file.read(1)) not in (b"\0", b""):
            delay = int.from_bytes(file.read(size[0])[1:3], "little") / 100
        blocks += 1 + (_skip_data(file) if kind in (_IMAGE, _EXTENSION) else 0)  # Pillow skips other bytes, too
        if blocks > _MAX_BLOCKS:
            raise ValueError("it has too many blocks")


def _count(file: IO[bytes], start: int) -> int:
    """Return the number of frames, at most one more than MAX_PICTURES.

    Pillow reads a file of millions of frames to its end to count them. Raises ValueError as `frame_delays` does.
    """
    return sum(1 for _ in islice(frame_delays(file, start), MAX_PICTURES + 1))


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
