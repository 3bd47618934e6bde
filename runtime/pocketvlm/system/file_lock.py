"""Lock open files between processes, with flock(2)."""

from __future__ import annotations

import sys
from typing import IO

if sys.platform != "win32":
    import fcntl


def try_lock(file: IO[bytes] | int, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed, and return False where another process holds a lock that forbids it.

    `shared` locks allow each other. Windows and some file systems have no such locks: then the answer is True, too.
    """
    if sys.platform != "win32":
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return True
