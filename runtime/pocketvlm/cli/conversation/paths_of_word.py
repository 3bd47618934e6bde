"""Complete the path at the end of a line, in the quotes or escapes that it begins with."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# A word that may have begun with a quote and is not finished, at the end of a line.
_LAST_WORD = re.compile(r"""(?<!\S)(?:"(?:\\.|[^"\\])*|'[^']*|(?:\\.|[^\s\\'"])(?:\\.|[^\s\\])*)?$""", re.DOTALL)
_ESCAPED = re.compile(r"""[\s\\'"()&;|<>$`*?!#\[\]{}]""")
_MOST = 500  # in one folder


@dataclass(frozen=True)
class PathCompletion:
    """`text` replaces the last `length` characters; `name` is shown in a list."""

    text: str
    length: int
    name: str


def last_word(text: str) -> str:
    """Return the word at the end of a text, with its quote and escapes. It may be empty."""
    match = _LAST_WORD.search(text)
    return match[0] if match else ""


def complete_path(text: str, is_wanted: Callable[[Path], bool]) -> Iterator[PathCompletion]:
    """Yield the folders and wanted files that continue the word at the end of `text`, in order of name.

    Hidden ones come only where the word begins with a dot.
    """
    word = last_word(text)
    quote = word[:1] if word[:1] in ("'", '"') else ""
    folder, _, beginning = _unescaped(word[len(quote) :], quote).rpartition("/")
    shown_folder = folder + "/" if "/" in word else ""
    count = 0
    for path in _entries(shown_folder or "."):
        if not path.name.startswith(beginning) or (path.name.startswith(".") and not beginning.startswith(".")):
            continue
        with suppress(OSError):
            is_folder = path.is_dir()
            if not is_folder and not is_wanted(path):
                continue
            whole = shown_folder + path.name + ("/" if is_folder else "")
            closed = "" if is_folder else quote
            yield PathCompletion(quote + _escaped(whole, quote) + closed, len(word), path.name + "/" * is_folder)
            count += 1
        if count == _MOST:
            return


def _entries(folder: str) -> list[Path]:
    with suppress(OSError, ValueError, RuntimeError):  # no such folder or user
        return sorted(Path(folder).expanduser().iterdir(), key=lambda path: path.name.lower())
    return []


def _unescaped(word: str, quote: str) -> str:
    if quote == "'" or os.name == "nt":  # backslashes separate folders
        return word.replace("\\", "/") if os.name == "nt" else word
    return re.sub(r"\\(.)", r"\1", word)


def _escaped(text: str, quote: str) -> str:
    if quote == "'" or os.name == "nt":
        return text
    if quote:
        return re.sub(r'(["\\$`])', r"\\\1", text)
    return _ESCAPED.sub(lambda match: "\\" + match[0], text)
