"""Open the preview of a camera's raw file: the largest JPEG picture in it. The raw data itself is not read.

CR2, NEF, ARW and DNG are TIFF files, in which directories name JPEG files: as old previews do (JPEGInterchangeFormat),
or as a strip or tile of the picture. Tags: TIFF 6.0; TIFF/EP (ISO 12234-2); Adobe DNG Specification 1.7.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import IO, TYPE_CHECKING

from pocketvlm.pictures.jpeg import jpeg_frame, open_jpeg
from pocketvlm.pictures.opened import Opened, splice

if TYPE_CHECKING:
    from PIL import Image

    from pocketvlm.pictures.tiff import Directory

_SENSOR = (32803, 34892)  # photometric interpretations: a colour filter array, and linear raw
_ORIENTATION = 0x0112
_JPEG_COMPRESSIONS = (6, 7)
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # frames of JPEG that are pictures; raw data is lossless JPEG, 0xC3
_MAX_PREVIEWS = 64


def is_raw(header: bytes, directories: Iterable[Directory]) -> bool:
    """Return whether a TIFF file with this header, of 16 bytes, and these directories is a camera's raw file."""
    return header[8:10] == b"CR" or any(_is_sensor(directory) for directory in directories)


def _is_sensor(directory: Directory) -> bool:
    with suppress(ValueError):  # a damaged directory, which may not matter
        return directory.value(262) in _SENSOR
    return False


def open_preview(file: IO[bytes], directories: list[Directory]) -> Opened | None:
    """Open the largest JPEG picture that the directories name; None if there is none.

    The first directory says how the camera was held, unless the JPEG picture says it itself.
    """
    end = file.seek(0, io.SEEK_END)
    previews: list[tuple[int, tuple[int, int], range]] = []
    for place in islice(dict.fromkeys(_places(directories)), _MAX_PREVIEWS):
        if 0 < place.start < place.stop <= end and (size := _size(file, place)):
            previews.append((size[0] * size[1], size, place))
    if not previews:
        return None
    _, size, place = max(previews, key=lambda preview: preview[0])
    opened = open_jpeg(splice(file, [place]))
    orientation = directories[0].value(_ORIENTATION, 1)
    notes = [f"the preview of {size[0]}x{size[1]} pixels in a camera's raw file was read"]

    def load() -> Image.Image:
        image = opened.load()
        notes[1:] = opened.notes
        if _ORIENTATION not in (exif := image.getexif()):
            exif[_ORIENTATION] = orientation
        return image

    return Opened(opened.size, load, notes=notes)


def _places(directories: list[Directory]) -> Iterator[range]:
    """Yield where the JPEG files may be that directories name."""
    for directory in directories:
        with suppress(ValueError):  # a damaged directory
            start, length = directory.value(513), directory.value(514)
            if start and length:
                yield range(start, start + length)
            if directory.value(259) not in _JPEG_COMPRESSIONS or _is_sensor(directory):
                continue
            for offset_tag, count_tag in ((273, 279), (324, 325)):  # a strip, or a tile
                offsets, counts = directory.values(offset_tag), directory.values(count_tag)
                if len(offsets) == len(counts) == 1:
                    yield range(offsets[0], offsets[0] + counts[0])


def _size(file: IO[bytes], place: range) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG picture of 8 bits a sample; None for anything else."""
    file.seek(place.start)
    if file.read(3) != b"\xff\xd8\xff":
        return None
    kind, frame = jpeg_frame(splice(file, [place]))
    if kind not in (*_SEQUENTIAL, _PROGRESSIVE) or len(frame) < 6 or frame[0] != 8:
        return None
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    return (width, height) if width and height else None
