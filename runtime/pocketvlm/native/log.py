"""Send native logs to `logging` ("pocketvlm.native"), and keep the last errors as reasons for exceptions."""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pocketvlm.errors import shortened

logger = logging.getLogger("pocketvlm.native")

# ggml_log_level (ggml.h): DEBUG 1, INFO 2, WARN 3, ERROR 4; 5 continues the previous line.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_errors: deque[str] = deque(maxlen=8)
_level = logging.DEBUG
_captures: list[list[str]] = []


def _receive(level: int, text: bytes, _data: object) -> None:
    global _level
    _level = _LEVELS.get(level, _level)
    line = text.decode("utf-8", "replace").rstrip()
    if _level >= logging.ERROR and line:
        _errors.append(line)
    for lines in _captures:
        lines.append(line)
    # Every level becomes DEBUG: native errors are raised as exceptions anyway, with their reason.
    if line and logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s", line)


_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_receive)


def send_to_logging(log_set: Callable[[Any, Any], None]) -> None:
    """Install the log callback with `log_set`, which is llama_log_set or mtmd_log_set."""
    log_set(ctypes.cast(_callback, log_set.argtypes[0]) if hasattr(log_set, "argtypes") else _callback, None)


@contextmanager
def capture() -> Iterator[list[str]]:
    """Collect the log lines of the block. Some facts, such as memory sizes, libllama reports only by logging them."""
    lines: list[str] = []
    _captures.append(lines)
    try:
        yield lines
    finally:
        _captures.remove(lines)


def forget_errors() -> None:
    """Drop the errors so far; call it before a native call whose errors `last_error` should report."""
    _errors.clear()


def last_error() -> str:
    """Return the first native error since `forget_errors`, which caused those after it."""
    if not _errors:
        return "no reason given"
    line = _errors[0]
    return shortened(line.split(": ", 1)[1] if ": " in line.partition(" ")[0] + " " else line)
