"""What a picture file shows, without what photo programs write into it: ratings, places and captions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO

from pocketvlm.pictures.jpeg import picture_pieces
from pocketvlm.pictures.opened import splice

_BLOCK = 1 << 20  # bytes


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hex; of a JPEG file without its metadata, but with its orientation.

    Nothing is decoded. Raises OSError.
    """
    with path.open("rb") as file:
        is_jpeg = file.read(3) == b"\xff\xd8\xff"
        file.seek(0)
        return _jpeg_digest(file) if is_jpeg else _digest(file)


def _jpeg_digest(file: IO[bytes]) -> str:
    try:
        pieces, orientation = picture_pieces(file)
    except OSError:
        raise
    except Exception:  # what Pillow raises for a damaged file
        file.seek(0)
        return _digest(file)
    return _digest(splice(file, [*pieces, b"orientation %d" % orientation]))


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
