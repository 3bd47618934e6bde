"""Work on a thread of its own: at once, or in the moments that nobody else wants a core."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import Lock, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Helper(Generic[T]):
    """Does `work`, which must not raise. RuntimeError where the system gives no thread.

    `idle`: only while a core would rest otherwise, which any other thread ends at once (SCHED_IDLE, sched(7)). That may
    be never, so whoever waits for it should not do so for ever.
    """

    def __init__(self, work: Callable[[], T], *, idle: bool = False) -> None:
        self._found: list[T] = []
        self._at: int | None = None
        self._free = False
        self._placing = Lock()
        self._thread = Thread(target=self._run, args=(work, idle), name="pocketvlm-helper", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], T], idle: bool) -> None:
        if idle:
            _rest()
        self._found.append(work())

    def follow(self) -> None:
        """Go on where the calling thread runs, which is about to rest.

        Else the system moves it about, and each time gives it a turn, a tick of its clock long, before that thread.
        """
        assert _cpu is not None
        with self._placing:
            if not self._free and (cpu := _cpu()) != self._at:
                self._at = cpu
                self._place({cpu})

    def free(self) -> None:
        """Go on wherever there is room, from now on."""
        with self._placing:
            self._free = True
            if self._at is not None:
                self._place(os.sched_getaffinity(0))

    def _place(self, cpus: set[int]) -> None:
        if self.running and (thread := self._thread.native_id) is not None:
            with suppress(OSError):
                os.sched_setaffinity(thread, cpus)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def ends_within(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self.running

    def result(self) -> T:
        """When it is done."""
        self._thread.join()
        return self._found[0]


_cpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


@cache
def idle_threads() -> bool:
    """Whether the system has such as run only where nobody else wants to: Linux, and not in every container."""
    try:
        return _cpu is not None and Helper(_rest).result()
    except RuntimeError:  # the system gives no thread
        return False


def _rest() -> bool:
    """The thread that calls it can never go back, without a privilege."""
    if sys.platform != "linux":
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (OSError, AttributeError):  # not every C library has it
        return False
    return True
