"""The formats of picture files: their names, endings and first bytes. `images.py` has their readers."""

from __future__ import annotations

import re
from pathlib import Path

from pocketvlm.messages.file_kinds import DOCUMENT_SUFFIXES

FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, HEIC, and the previews in CR2, NEF, ARW and DNG"
_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .gif .bmp .dib .tif .tiff .avif .heic .heif .hif .cr2 .nef .arw .dng".split()
)
# How files of these formats begin, for names without an ending.
_PICTURE = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0{4}|RIFF.{4}WEBP|II\*\0|MM\0\*|.{4}ftyp(avif|heic|heix|mif1)", re.DOTALL
)
_PICTURE_BYTES = 16


def is_picture_name(name: str) -> bool:
    """Return whether a name has the ending of a picture, PDF or video. There need not be such a file."""
    return Path(name).suffix.lower() in (*_SUFFIXES, *DOCUMENT_SUFFIXES)


def is_document(path: Path) -> bool:
    """Return whether a file of a folder is a PDF or a video by its name."""
    return path.suffix.lower() in DOCUMENT_SUFFIXES and not path.name.startswith("._") and path.is_file()


def is_picture(path: Path) -> bool:
    """Return whether a file of a folder is a picture by its name, or by its first bytes where the name has no ending.

    macOS writes a file `._NAME` beside NAME on other file systems (AppleDouble), which is not one.
    """
    if path.name.startswith("._") or not path.is_file():
        return False
    if path.suffix:
        return path.suffix.lower() in _SUFFIXES
    try:
        with path.open("rb") as file:
            return _PICTURE.match(file.read(_PICTURE_BYTES)) is not None
    except OSError:
        return False
