"""A file that appears when it is complete, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def new_file(path: Path, *, mode: int = 0o666, synced: bool = True) -> Iterator[BinaryIO]:
    """To be filled; it takes its place at the end, and is gone where anything is raised, Ctrl-C included.

    It lies beside its place as `.NAME.RANDOM.partial`, with `mode` less the umask. `synced` where losing it in a power
    cut matters. Raises what the system does: OSError, and ValueError for what is no name of a file; and OSError for a
    device or a pipe, whose place no file should take.
    """
    with suppress(FileNotFoundError):
        kind = path.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind) or stat.S_ISDIR(kind)):
            raise OSError(errno.EINVAL, "is no regular file")
    partial = partial_path(path)
    try:
        # Never through a link that somebody put there.
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, mode), "w+b") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # Ctrl-C too: nothing half-written stays
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def partial_path(path: Path) -> Path:
    """Return a new hidden name next to `path`, `.NAME.RANDOM.partial`, for what is not complete yet.

    Call it before the `try` that removes the file: a signal between creating and naming would leave the file behind.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def keep_text(path: Path, text: str) -> None:
    """What was measured, for this user alone: its folder is made where it is missing, and a power cut may take it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, mode=0o600, synced=False) as file:
        file.write(text.encode())


_BINARY = getattr(os, "O_BINARY", 0)  # Windows has two kinds
