"""Say so if the kernel ends this process because memory is full: it gives the process itself no chance to."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress

from pocketvlm.system.cgroup import oom_kills
from pocketvlm.system.machine import group_memory


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
        atexit.register(os.write, writer, b".")  # when this process ends by itself
        return
    try:
        for name in ("SIGINT", "SIGHUP", "SIGQUIT"):  # from the terminal, for the process that is watched
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        for number in (writer, 0, 1):  # a reader of standard output must see its end
            with suppress(OSError):
                os.close(number)
        if os.read(reader, 1) == b"" and oom_kills() > kills:
            message = f"error: the kernel ended the process: the {group[0] >> 20:,} MB of its control group are full\n"
            os.write(2, message.encode())
    finally:  # never on with the command
        os._exit(0)
