"""Durations as Ollama's clients write them: 300, "300", "5m", "1h30m", "-1". Pure."""

from __future__ import annotations

import math
import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 1e9
_NUMBER = r"(?:\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})"
_UNIT = f"(?:{'|'.join(sorted(_UNITS, key=len, reverse=True))})"
_PART = re.compile(f"({_NUMBER})({_UNIT})")
_WHOLE = re.compile(f"([+-]?)((?:{_NUMBER}{_UNIT})+|{_NUMBER})")


def seconds(value: object) -> float | None:
    """Return a duration in seconds, -1 for one below zero or of decades, which means forever. None stays None.

    Raises ValueError.
    """
    if value is None:
        return None
    if isinstance(value, str) and (match := _WHOLE.fullmatch(value.strip())):
        parts = _PART.findall(match[2])
        size = sum(float(number) * _UNITS[unit] for number, unit in parts) if parts else float(match[2])
        value = -size if match[1] == "-" else size
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError('must be a number of seconds, or a duration such as "5m" or "-1"')
    return -1.0 if not 0 <= value <= _LONGEST else float(value)
