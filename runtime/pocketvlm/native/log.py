"""Native logs go to `logging` ("pocketvlm.native"), and the last errors can be asked for a reason."""

from __future__ import annotations

import ctypes
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger("pocketvlm.native")

# ggml_log_level (ggml.h): DEBUG 1, INFO 2, WARN 3, ERROR 4; 5 continues the line before.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_recent: deque[str] = deque(maxlen=8)
_level = logging.DEBUG
_heard: list[list[str]] = []


def _receive(level: int, text: bytes, _data: object) -> None:
    global _level
    _level = _LEVELS.get(level, _level)
    line = text.decode("utf-8", "replace").rstrip()
    if _level >= logging.ERROR and line:
        _recent.append(line)
    for lines in _heard:
        lines.append(line)
    # A native error is raised as an exception with its reason; as a log line it is a detail.
    if line and logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s", line)


_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_receive)


def send_to_logging(log_set: Callable[[Any, Any], None]) -> None:
    """`log_set` is llama_log_set or mtmd_log_set; the callback lives as long as the process."""
    log_set(ctypes.cast(_callback, log_set.argtypes[0]) if hasattr(log_set, "argtypes") else _callback, None)


@contextmanager
def heard() -> Iterator[list[str]]:
    """The lines that come meanwhile: libllama tells some things in no other way."""
    lines: list[str] = []
    _heard.append(lines)
    try:
        yield lines
    finally:
        _heard.remove(lines)


def forget_errors() -> None:
    _recent.clear()


def last_error() -> str:
    """The first native error since `forget_errors`, which is the cause of those after it."""
    if not _recent:
        return "no reason given"
    line = _recent[0]
    return line.split(": ", 1)[1] if ": " in line.partition(" ")[0] + " " else line
