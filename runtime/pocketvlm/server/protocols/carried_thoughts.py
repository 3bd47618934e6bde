"""Thoughts that clients carry from one request to the next without showing them, in a field that they do not read."""

from __future__ import annotations

import base64
import binascii

_MARK = "pocketvlm-thought:"  # before the base64 of a thought


def carry_thought(text: str) -> str:
    """Return a thought as the text of such a field."""
    return _MARK + base64.b64encode(text.encode()).decode()


def read_thought(carried: str) -> str:
    """Return the thought that `carry_thought` has written, "" for any other text."""
    if not carried.startswith(_MARK):
        return ""
    try:
        return base64.b64decode(carried[len(_MARK) :], validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
