"""Files that appear when they are complete, or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

ABANDONED_AFTER = 600.0  # seconds without a change, after which a partial file has lost its writer
_DEVICE = re.compile(r"con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]", re.IGNORECASE)
_WAITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # seconds
_BINARY = getattr(os, "O_BINARY", 0)  # on Windows files are text by default


@contextmanager
def new_file(path: Path, *, mode: int = 0o666, synced: bool = True, alone: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to be written. It replaces `path` at the end, and is removed where anything is raised, even Ctrl-C.

    Until then it is `.NAME.RANDOM.partial` in the same folder, with `mode` less the umask. `synced`: flush it to disk,
    where losing it in a power cut matters. `alone`: remove what a process that was killed left of the same NAME. Raises
    OSError as the system does, and for a device or pipe, which must not be replaced; ValueError for a path that cannot
    name a file.
    """
    if is_device_name(path.name):
        raise OSError(errno.EINVAL, "the name of a device")
    with suppress(FileNotFoundError):
        kind = path.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind) or stat.S_ISDIR(kind)):
            raise OSError(errno.EINVAL, "not a regular file")
    if alone:
        _remove_abandoned(path)
    partial = partial_path(path)
    try:
        # O_EXCL: never write through a link that another user made.
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, mode), "w+b") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        replace(partial, path)
    except BaseException:  # Ctrl-C too: nothing half-written stays
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def replace(source: Path, target: Path) -> None:
    """Give a file its name, in place of another of that name.

    On Windows, that waits for a moment while another program has one of them open, such as a virus scanner.
    """
    for wait in _WAITS if sys.platform == "win32" else ():
        with suppress(PermissionError):
            source.replace(target)
            return
        time.sleep(wait)
    source.replace(target)


def _remove_abandoned(path: Path) -> None:
    name = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.partial")
    with suppress(OSError):
        for other in path.parent.iterdir():
            if name.fullmatch(other.name) and other.lstat().st_mtime < time.time() - ABANDONED_AFTER:
                with suppress(OSError):
                    other.unlink()


def partial_path(path: Path) -> Path:
    """Return a new hidden name next to `path`, `.NAME.RANDOM.partial`, for what is not complete yet.

    Call it before the `try` that removes the file: a signal between creating and naming would leave the file behind.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def is_device_name(name: str, *, system: str = sys.platform) -> bool:
    """Return whether a name means a device on Windows, with every ending: nothing can be written there."""
    return system == "win32" and _DEVICE.fullmatch(name.partition(".")[0].rstrip()) is not None


def keep_text(path: Path, text: str) -> None:
    """Write a text that can be made again, readable by this user only. Makes its folder; a power cut may lose it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, mode=0o600, synced=False) as file:
        file.write(text.encode())
