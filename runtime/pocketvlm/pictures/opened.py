"""What the readers of formats return for a file whose header they have read."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

# Pixels: what JPEG can count, and far above what a model can see. Pillow and numpy need memory for each row, so that a
# picture of few pixels in very many rows takes gigabytes.
MAX_SIDE = 65_535


MAX_PICTURES = 10_000  # of a file; far above what a request may show a model
_ORIENTATION = 0x0112  # the EXIF tag


class UnsupportedKindError(Exception):
    """The file may be sound, but nothing here reads its kind; the message names the kind."""


@dataclass
class Opened:
    """A file of which only the header was read. `size` is (width, height) in pixels, as stored: not yet upright.

    `load` decodes the pixels; the caller checks `size` against the limits before. `pages` counts the pictures of the
    file; those of an animation are one. Of them `page` is read, counted from 1. `notes` are sentences for the user;
    `load` may add some.

    `count` returns how many pictures there are with the frames of an animation, and `select` opens another one by its
    number from 0; both read the file, and raise errors of any kind where it is damaged. Without them there is one.

    `orientation` returns the EXIF orientation from what was read so far; None where only the decoded picture says it.
    """

    size: tuple[int, int]
    load: Callable[[], Image.Image]
    pages: int = 1
    page: int = 1
    notes: list[str] = field(default_factory=list)
    count: Callable[[], int] | None = None
    select: Callable[[int], Opened] | None = None
    orientation: Callable[[], int] | None = None

    @property
    def upright_size(self) -> tuple[int, int] | None:
        """(width, height) of the upright picture; None where it has to be decoded to know that."""
        if self.orientation is None:
            return None
        width, height = self.size
        return (height, width) if self.orientation() >= 5 else (width, height)


def exif_orientation(getexif: Callable[[], Image.Exif]) -> int:
    """Return an orientation from 1 to 8; 1 where there is none, or the metadata is damaged."""
    try:
        value = getexif().get(_ORIENTATION, 1)
    except Exception:  # a picture with damaged metadata is still usable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


class Splice(io.RawIOBase):
    """A file made of pieces: bytes, and ranges of another file's positions. Nothing is copied before it is read."""

    def __init__(self, file: IO[bytes], pieces: Sequence[bytes | range]) -> None:
        self._file = file
        self._pieces = [piece for piece in pieces if len(piece)]
        self._starts = list(accumulate(map(len, self._pieces), initial=0))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        index = bisect_right(self._starts, self._position) - 1
        if index == len(self._pieces):
            return 0
        piece, skip = self._pieces[index], self._position - self._starts[index]
        count = min(len(view), len(piece) - skip)
        if isinstance(piece, range):
            self._file.seek(piece.start + skip)
            data = self._file.read(count)
        else:
            data = piece[skip : skip + count]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def splice(file: IO[bytes], pieces: Sequence[bytes | range]) -> IO[bytes]:
    """Return the pieces as one buffered file."""
    return io.BufferedReader(Splice(file, pieces))
