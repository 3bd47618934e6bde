"""Lock open files between processes: with flock(2), and on Windows with LockFileEx."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import IO

if sys.platform == "win32":
    from pocketvlm.system import windows
else:
    import fcntl


def try_lock(file: IO[bytes] | int, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed, and return False where another one of it holds a lock that forbids it.

    `shared` locks allow each other. Some file systems have no locks: then the answer is True, too. What is locked can
    still be read and written.
    """
    if sys.platform == "win32":
        with suppress(OSError):
            return windows.lock(file if isinstance(file, int) else file.fileno(), shared=shared)
    else:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True
