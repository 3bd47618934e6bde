"""Paths as people type, paste and drop them: with quotes, escapes and ~, and with other spaces than in the name."""

from __future__ import annotations

import os
import shlex
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_WINDOWS = os.name == "nt"


def typed_path(text: str, *, alike: bool = True) -> str:
    """Return the path that `text` means.

    That is `text` itself where such a file exists, or else the first of its readings that exists: without quotes and
    escapes, with ~ for the home folder, or (with `alike`) with other spaces. If none exists it is what a shell reads.
    """
    readings = [*_readings(text)]
    for reading in readings:
        if exists(reading):
            return reading
    for reading in readings if alike else ():
        if other := _alike(reading):
            return other
    return readings[-1]


def _readings(text: str) -> Iterator[str]:
    """Yield the paths that a text may mean; the first is the text itself."""
    yield text
    unquoted = _unquoted(text)
    if unquoted != text:
        yield unquoted
    if unquoted.startswith("~"):
        with suppress(RuntimeError):  # no such user
            yield str(Path(unquoted).expanduser())


def _unquoted(text: str, *, windows: bool = _WINDOWS) -> str:
    """Return the text as a shell reads it, if that is one word.

    On Windows, backslashes separate folders. PowerShell writes `& 'C:\\a b.png'` for a file that is dropped on it.
    """
    if windows:
        word = text.removeprefix("& ").strip()
        if len(word) >= 2 and word[0] == word[-1] == "'":
            return word[1:-1].replace("''", "'")
        return word.strip('"')
    try:
        words = shlex.split(text)
    except ValueError:  # an unmatched quote
        return text
    return words[0] if len(words) == 1 else text


def _alike(text: str) -> str | None:
    """Return the only file whose name is `text` but for the kinds of its spaces and for its Unicode normalization."""
    path = Path(text)
    with suppress(OSError, ValueError):
        alike = [entry for entry in path.parent.iterdir() if _plain(entry.name) == _plain(path.name)]
        if len(alike) == 1:
            return str(alike[0])
    return None


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())


def exists(path: str) -> bool:
    with suppress(OSError, ValueError):  # a name that is too long, NUL
        return bool(path) and Path(path).exists()
    return False
