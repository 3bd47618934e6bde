"""Say so if the kernel ends this process because memory is full: it gives the process itself no chance to."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from functools import cache

from pocketvlm.system.cgroup import oom_kills
from pocketvlm.system.machine import group_memory


@cache  # a process that runs several commands needs one
def watch_for_oom_kill() -> None:
    """Start a process that waits for the end of this one, if this one's control group limits memory.

    It is small, because it is forked before anything is imported. So the kernel does not pick it, and its pages are
    mostly shared.
    """
    if sys.platform == "win32":
        return
    if (group := group_memory()) is None:
        return
    kills = oom_kills()
    reader, writer = os.pipe()
    try:
        forked = os.fork()
    except OSError:  # the system gives no process
        return
    if forked:
        os.close(reader)
        atexit.register(_end_watch, writer)
        return
    try:
        # From the terminal or a supervisor, for the process that is watched; its end is the end of this one.
        for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGTERM"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        for number in (writer, 0, 1):  # a reader of standard output must see its end
            with suppress(OSError):
                os.close(number)
        if os.read(reader, 1) == b"" and oom_kills() > kills:
            message = f"error: the kernel ended the process: the {group[0] >> 20:,} MB of its control group are full\n"
            os.write(2, message.encode())
    finally:  # never on with the command
        os._exit(0)


def _end_watch(writer: int) -> None:
    """Say that this process ends by itself."""
    with suppress(OSError):  # the watching process was ended before
        os.write(writer, b".")
