"""Ctrl-C and its like, while native code runs in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_RAISING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_elsewhere = nullcontext()


def signals_deferred(stop: Callable[[], None] | None = None) -> AbstractContextManager[None]:
    """What handlers of signals raise, such as KeyboardInterrupt, comes when the native call is over; `stop` ends it.

    Python runs them at the next step of its main thread, which during a native call is one of our callbacks. Nothing
    can be raised through that: ctypes prints it with a traceback, and the call goes on as if nobody had interrupted.
    """
    ours = threading.current_thread() is threading.main_thread()
    return _held_back(stop) if ours else _elsewhere


@contextmanager
def _held_back(stop: Callable[[], None] | None) -> Iterator[None]:
    before = {number: found for number in _RAISING if callable(found := signal.getsignal(number))}
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        came.append(number)
        if stop is not None:
            stop()

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
