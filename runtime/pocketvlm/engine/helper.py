"""Work on a thread of its own: at once, or in the moments that nobody else wants a core."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from threading import Thread
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
        cpu = _cpu()
        if cpu != self._at and self._thread.native_id is not None and self.running:
            self._at = cpu
            with suppress(OSError):
                os.sched_setaffinity(self._thread.native_id, {cpu})

    def free(self) -> None:
        """Go on wherever there is room."""
        if self._at is not None and self._thread.native_id is not None and self.running:
            with suppress(OSError):
                os.sched_setaffinity(self._thread.native_id, os.sched_getaffinity(0))

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
    return _cpu is not None and Helper(_rest).result()


def _rest() -> bool:
    """The thread that calls it can never go back, without a privilege."""
    if sys.platform != "linux":
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        return False
    return True
