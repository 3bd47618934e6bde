"""Files that appear when they are complete, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_BINARY = getattr(os, "O_BINARY", 0)  # on Windows files are text by default


@contextmanager
def new_file(path: Path, *, mode: int = 0o666, synced: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to be written. It replaces `path` at the end, and is removed where anything is raised, even Ctrl-C.

    Until then it is `.NAME.RANDOM.partial` in the same folder, with `mode` less the umask. `synced`: flush it to disk,
    where losing it in a power cut matters. Raises OSError as the system does, and for a device or pipe, which must not
    be replaced; ValueError for a path that cannot name a file.
    """
    with suppress(FileNotFoundError):
        kind = path.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind) or stat.S_ISDIR(kind)):
            raise OSError(errno.EINVAL, "not a regular file")
    partial = partial_path(path)
    try:
        # O_EXCL: never write through a link that another user made.
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
    """Write a text that can be made again, readable by this user only. Makes its folder; a power cut may lose it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, mode=0o600, synced=False) as file:
        file.write(text.encode())
