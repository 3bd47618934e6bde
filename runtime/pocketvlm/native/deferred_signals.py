"""Defer Ctrl-C and similar signals while native code runs in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_DEFERRED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_do_nothing = nullcontext()


def signals_deferred(stop: Callable[[], None] | None = None) -> AbstractContextManager[None]:
    """Run Python's signal handlers after a native call, not inside it; a signal calls `stop` to end the call early.

    Python runs a handler at the next bytecode of its main thread, which during a native call belongs to one of our
    callbacks. An exception such as KeyboardInterrupt cannot leave that: ctypes prints it with a traceback, and the
    native call continues.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    return _deferred(stop) if in_main_thread else _do_nothing


@contextmanager
def _deferred(stop: Callable[[], None] | None) -> Iterator[None]:
    handlers = {number: handler for number in _DEFERRED if callable(handler := signal.getsignal(number))}
    received: list[int] = []

    def receive(number: int, _frame: object) -> None:
        received.append(number)
        if stop is not None:
            stop()

    for number in handlers:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
