"""The `pocketvlm` command. It imports little here, so that Ctrl-C while the rest is loaded ends it quietly, too."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings

from pocketvlm.cli.oom_watch import watch_for_oom_kill
from pocketvlm.system.allocator import share_one_heap
from pocketvlm.system.limits import ONE_BLAS_THREAD, require_group_memory, reserved_addresses, shortage

# Bytes that importing the commands, NumPy and the engine takes, on x86-64.
_ADDRESSES, _MEMORY = 136 << 20, 44 << 20
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def interrupted(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused `error`. An extension module that it interrupts while loading raises ImportError."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _accept_any_text() -> None:
    """Print and read what the locale's encoding lacks, too. A file or pipe gets UTF-8, also on Windows."""
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(encoding=None if file.isatty() else "utf-8", errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def main() -> None:
    """Run the command. Exit codes: 0 done, 1 a check failed, 2 wrong use or input, 130 interrupted."""
    # None if the shell closed it (`<&-`, `>&-`).
    sys.stdin = sys.stdin or os.fdopen(os.open(os.devnull, os.O_RDONLY))
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    _accept_any_text()
    warnings.filterwarnings("ignore", module="PIL")  # broken pictures are reported by our own errors
    for name, value in ONE_BLAS_THREAD.items():  # before numpy is imported
        os.environ.setdefault(name, value)
    try:
        watch_for_oom_kill()
        share_one_heap()
        with reserved_addresses(_ADDRESSES, "pocketvlm"):
            require_group_memory(_MEMORY, "pocketvlm")
        from pocketvlm.cli.commands import run

        run()
    except BrokenPipeError:  # the reader has ended (pocketvlm ... | head)
        sys.exit(0)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich and typer end with 1
            sys.exit(0)
        raise
    except (KeyboardInterrupt, Exception) as error:
        if interrupted(error):
            sys.exit(130)
        reason = shortage(error)
        if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS:
            reason = f"the output cannot be written: {error.strerror}"
        if reason is None:
            raise
        sys.stderr.write(f"error: {reason}\n")
        sys.exit(2)
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # the rest of the buffer cannot be written
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
