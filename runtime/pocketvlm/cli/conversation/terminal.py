"""The terminal of a conversation: what can move its cursor, and how to wait without showing what is typed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Thread
from typing import TextIO

if sys.platform == "win32":
    from pocketvlm.system import windows

_PASTE_MARKED, _PASTE_PLAIN = "\x1b[?2004h", "\x1b[?2004l"


def moves_cursor(file: TextIO) -> bool:
    """Return whether a file is a terminal that knows escape sequences."""
    if not file.isatty():
        return False
    if sys.platform == "win32":  # a console there has to be asked to read them
        with suppress(OSError):
            return windows.enable_escapes(file.fileno())
        return False
    return os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def echo_file() -> TextIO | None:
    """Return what typed text is shown on; None without a terminal that can move its cursor."""
    if not sys.stdin.isatty():
        return None
    return next((file for file in (sys.stdout, sys.stderr) if moves_cursor(file)), None)


@contextmanager
def not_echoed() -> Iterator[None]:
    """Do not show what is typed meanwhile: it would stand within the output. It is read afterwards.

    A text that is pasted stays one text. Ctrl-C interrupts as ever.
    """
    echo = echo_file()
    if sys.platform == "win32" or echo is None:  # Windows shows nothing before it is read
        yield
        return
    import termios

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    quiet = termios.tcgetattr(file)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    try:
        termios.tcsetattr(file, termios.TCSANOW, quiet)
        _write(echo, _PASTE_MARKED)
        yield
    finally:
        _write(echo, _PASTE_PLAIN)
        with suppress(termios.error):  # a terminal that is gone
            termios.tcsetattr(file, termios.TCSANOW, before)


def begin_import(name: str) -> None:
    """Import a module of this folder that a terminal needs soon, while something else is waited for."""
    if echo_file() is not None:
        Thread(target=import_module, args=(f"pocketvlm.cli.conversation.{name}",), daemon=True).start()


def _write(file: TextIO, text: str) -> None:
    with suppress(OSError):
        file.write(text)
        file.flush()
