"""Opening the files of a folder that was downloaded: what lies there may not be what its name says."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from pocketvlm.errors import CheckpointError

# How files begin that people find in place of the right one.
_FOREIGN = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder"),
    (b"<!doctype html", "is a web page, not the file itself: the download failed"),
    (b"<html", "is a web page, not the file itself: the download failed"),
    (b"gguf", "is a GGUF file; the safetensors of the original checkpoint are read"),
    (b"pk\x03\x04", "is a PyTorch or zip file; only safetensors are read"),
    (b"\x80\x02", "is a Python pickle; only safetensors are read"),
    (b"\x1f\x8b", "is compressed: unpack it first"),
)


def open_file(path: Path) -> BinaryIO:
    """`path`, which may be a link, opened for reading.

    Raises CheckpointError where it is missing, empty, no regular file (a FIFO would block), or another kind of file.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise CheckpointError("is a folder, not a file" if stat.S_ISDIR(mode) else "is not a regular file", path)
        file = path.open("rb")
        try:
            _check_kind(file, path)
        except BaseException:  # whatever ends it: nobody else has the file
            file.close()
            raise
        return file
    except FileNotFoundError:
        gone = path.is_symlink()
        raise CheckpointError("is a link to a file that is gone" if gone else "is missing", path) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"cannot be read: {error}", path) from None


def read_limited(path: Path, limit: int) -> bytes:
    """All of a file of at most `limit` bytes. Raises CheckpointError."""
    with open_file(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise CheckpointError(f"has {size:,} bytes; {limit >> 20} MiB are plenty for such a file", path)
            return file.read(size)
        except OSError as error:
            raise CheckpointError(f"cannot be read: {error}", path) from None


def _check_kind(file: BinaryIO, path: Path) -> None:
    head = file.read(32).lower()
    file.seek(0)
    if not head:
        raise CheckpointError("is empty", path)
    for beginning, reason in _FOREIGN:
        if head.startswith(beginning):
            raise CheckpointError(reason, path)
