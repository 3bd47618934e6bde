"""What the system allows this process, and what to say where it refuses: addresses, threads and open files.

Native libraries end the process where they get no memory or no thread. So both are tried before they are needed.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pocketvlm.errors import SystemLimitError
from pocketvlm.system import windows
from pocketvlm.system.machine import group_memory

# For NumPy in our own processes. Nothing here uses OpenBLAS, which would start a thread for each core and interrupt the
# process where it gets none.
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
_MB = 1 << 20  # as `ulimit` counts
_UNMAPPED = ("cannot allocate memory", "failed to map segment")  # errors of the dynamic loader
_NO_THREAD = "can't start new thread"  # an error of Python
_ENOUGH_FILES = 64
_MAX_OOM_SCORE = 1000  # a thousandth stands for a thousandth of the memory
_STACK = 8 * _MB  # of a thread, as a rule
TIME_IS_OVER = -27 if sys.platform != "win32" else windows.TIME_IS_OVER  # exit code by `limit_own_time`: SIGPROF


def shortage(error: BaseException | None) -> str | None:
    """Return what the system refused and what to do, if that is why `error` was raised; None for other errors."""
    while error is not None:
        if isinstance(error, SystemLimitError):
            return str(error)
        number, text = getattr(error, "errno", None), str(error).lower()
        if isinstance(error, MemoryError) or number == errno.ENOMEM:
            return _no_memory()
        if isinstance(error, ImportError | OSError) and any(words in text for words in _UNMAPPED):
            return _no_memory()
        if number in (errno.EMFILE, errno.ENFILE):
            return f"no more files can be opened; `ulimit -n` is {_limit('RLIMIT_NOFILE')}, raise it to {_ENOUGH_FILES}"
        forking = number == errno.EAGAIN and _from_subprocess(error)  # others are of locks, pipes and sockets
        if forking or (isinstance(error, RuntimeError) and text == _NO_THREAD):
            return no_threads()
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def no_threads() -> str:
    """Say that the system gives no thread or process, and what to do."""
    limit = address_limit()
    if limit is not None and _free_addresses(limit) < 2 * _STACK:  # a thread's stack takes addresses
        return _no_memory()
    return "the system allows no more threads; raise `ulimit -u`, or the container's limit of processes (pids.max)"


def address_limit() -> int | None:
    """Return how many bytes of addresses this process may use (`ulimit -v`); None where there is no limit."""
    return _limit("RLIMIT_AS")


@contextmanager
def reserved_addresses(size: int, purpose: str) -> Iterator[None]:
    """Keep `size` bytes of addresses from others where addresses are limited.

    Raises SystemLimitError, a sentence about `purpose`, where they are not free.
    """
    limit = address_limit()
    if limit is None or sys.platform == "win32":
        yield
        return
    try:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)
    except OSError:
        free = _free_addresses(limit)
        raise SystemLimitError(
            f"{purpose} needs {_mb(size)} MB of addresses, but {_mb(free)} of the {_mb(limit)} MB of `ulimit -v` are "
            f"free; raise it to {_mb(limit + size - free)} or more"
        ) from None
    with block:
        yield


def is_group_limited() -> bool:
    """Whether a control group limits the memory of this process."""
    return group_memory() is not None


def require_group_memory(size: int, purpose: str) -> None:
    """Raise SystemLimitError where `size` bytes are not free in the control groups: the kernel would end the process.

    The message is a sentence about `purpose`.
    """
    group = group_memory()
    if group is not None and size > group[1]:
        limit, free = group
        raise SystemLimitError(
            f"{purpose} needs {_mb(size)} MB of memory, but {_mb(free)} of the {_mb(limit)} MB of its control group "
            f"are free; allow it {_mb(limit + size - free)} MB or more"
        )


def startable_threads(most: int) -> int:
    """Start up to `most` threads at once, end them, and return how many the system gave."""
    end, threads = threading.Event(), list[threading.Thread]()
    try:
        while len(threads) < most:
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        pass
    finally:
        end.set()
        for thread in threads:
            thread.join()
    return len(threads)


def require_threads(count: int) -> None:
    """Raise SystemLimitError where this process cannot start `count` more threads."""
    if startable_threads(count) < count:
        raise SystemLimitError(no_threads())


def require_files(count: int) -> None:
    """Raise SystemLimitError where this process cannot open `count` more files."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise SystemLimitError(shortage(error) or str(error)) from None
    finally:
        for number in opened:
            os.close(number)


def limit_own_time(seconds: float) -> None:
    """End this process after `seconds` of a processor, with `TIME_IS_OVER`; 0 for no limit."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)  # without a handler, SIGPROF ends a process
    else:
        with suppress(OSError):  # a system that refuses, such as an old one within a job
            windows.limit_own_time(seconds)


def limit_own_memory(size: int) -> None:
    """Make allocations beyond `size` bytes of address space fail; on Windows, of committed memory.

    There is no core file of a process that ends for want of memory.
    """
    if sys.platform == "win32":
        with suppress(OSError):
            windows.limit_own_memory(size)
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError, ValueError):  # macOS may refuse a limit
            resource.setrlimit(resource.RLIMIT_AS, (size, size))


def offer_to_oom_killer() -> None:
    """Let the kernel end this process before its parent where memory is full (proc_pid_oom_score_adj(5))."""
    adjustment = Path("/proc/self/oom_score_adj")
    with suppress(OSError):  # not Linux
        # Its parent keeps what an administrator has set.
        adjustment.write_text(str(min(_MAX_OOM_SCORE, int(adjustment.read_text()) + _MAX_OOM_SCORE // 2)))


def _from_subprocess(error: BaseException) -> bool:
    """Return whether `error` was raised where Python's subprocess starts a process."""
    return any(frame.f_globals.get("__name__") == "subprocess" for frame, _ in traceback.walk_tb(error.__traceback__))


def _no_memory() -> str:
    for name, option in (("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")):
        if (limit := _limit(name)) is not None:
            return f"out of memory: `ulimit {option}` is {_mb(limit)} MB; raise it"
    return "out of memory; `pocketvlm plan` shows what a model needs"


def _limit(name: str) -> int | None:
    """Return the soft limit of this process; None where there is none."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft


def _free_addresses(limit: int) -> int:
    """Return how many bytes of the limit are not used; all where this system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return limit
    return max(0, limit - pages * mmap.PAGESIZE)


def _mb(size: int) -> str:
    return f"{-(-size // _MB):,}"
