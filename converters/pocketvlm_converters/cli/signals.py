"""Signals that end a program, as an exception: what Ctrl-C cleans up, they clean up too."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Within it, SIGTERM and SIGHUP raise SystemExit with 128 and the signal's number; a second one is ignored.

    Signals that somebody handles or ignores (nohup) are left alone. In the main thread only, as Python wants it.
    """
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _: FrameType | None) -> None:
        for one in ours:
            signal.signal(one, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
