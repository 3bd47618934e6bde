"""What a person has typed: a command, or a question with the paths of pictures in it.

A path may be quoted, escaped, begin with ~ or be a file: URI, as terminals write what is dropped on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pocketvlm.cli.typed_path import exists, typed_path
from pocketvlm.errors import RequestError
from pocketvlm.pictures.formats import is_document, is_picture, is_picture_name

BLOCK = '"""'  # around several lines
_MAX_WORDS = 32  # of a path whose spaces are not escaped
_LIKE_A_PATH = re.compile(r"""['"]?(?:~|/|\./|\.\./|[A-Za-z]:[\\/]|file:)""")
_PUNCTUATION = "?!.,;:)"
_WORD = re.compile(r"\S+")
# As a shell reads it: quotes, escapes, and anything else that is not a space.
_SHELL_WORD = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\])+""", re.DOTALL)


@dataclass(frozen=True)
class TypedCommand:
    name: str
    argument: str


@dataclass(frozen=True)
class TypedMessage:
    """`question` is empty where only pictures were given. `others` are files that are not pictures, as they were
    typed: the model does not see them."""

    question: str
    pictures: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Path:
    """A path in a text: where it stands, and what it means. `around` is punctuation that belongs to the sentence."""

    start: int
    end: int
    path: str


def is_open(text: str) -> bool:
    """Return whether a text begins with three quotes that are not closed yet."""
    begun = text.lstrip()
    return begun.startswith(BLOCK) and BLOCK not in begun[len(BLOCK) :]


def read_typed(text: str, commands: Sequence[str]) -> TypedCommand | TypedMessage:
    """Tell a command from a question, and find the pictures in it.

    Raises RequestError for an unknown command, and for the path of a picture that does not exist.
    """
    text = text.strip()
    if text.startswith(BLOCK):
        return read_message(text.removeprefix(BLOCK).removesuffix(BLOCK).strip())
    if text.startswith("/"):
        name, _, argument = text.partition(" ")
        if name in commands:
            return TypedCommand(name, argument.strip())
        found = next(_paths(text), None)
        if found is None or found.start:
            if "/" in name[1:]:
                raise RequestError(f"{name}: no such file, and not a command; /help lists the commands")
            raise RequestError(f"unknown command {name}; /help lists the commands")
    return read_message(text)


def read_message(text: str) -> TypedMessage:
    """Find the pictures in a question.

    A path at its beginning or end is taken out of it; one within a sentence leaves its file name. In a text of several
    lines, only lines that are nothing but paths count, because pasted text may mention any file.
    """
    if "\n" in text:
        lines: list[str] = []
        pictures: list[str] = []
        for line in text.split("\n"):
            paths = [found.path for found in _paths(line, checked=False)]
            if paths and _only_paths(line) and all(map(_is_shown, paths)):
                pictures += paths
            else:
                lines.append(line)
        return TypedMessage("\n".join(lines).strip(), tuple(pictures))
    kept, shown, others = list[str](), list[str](), list[str]()
    end = 0
    for found in _paths(text):
        kept.append(text[end : found.start])
        end = found.end
        if _is_shown(found.path):
            shown.append(found.path)
            before, after = text[: found.start].strip(), text[found.end :]
            if before and after.strip() and not _only_paths(before) and not _only_paths(after):
                kept.append(Path(found.path).name)
        else:
            others.append(text[found.start : found.end])
            kept.append(text[found.start : found.end])
    kept.append(text[end:])
    if not shown:
        return TypedMessage(text.strip(), (), tuple(others))
    question = re.sub(r"(?<=\S) {2,}", " ", "".join(kept).strip())
    return TypedMessage(question, tuple(shown), tuple(others))


def picture_source(text: str) -> str:
    """Return the path or URL of a picture that a person has typed."""
    if text.startswith("file:"):
        return _path_of_uri(text) or text
    return text if text.startswith(("data:", "http:", "https:")) else typed_path(text)


def _only_paths(text: str) -> bool:
    end = 0
    for found in _paths(text, checked=False):
        if text[end : found.start].strip():
            return False
        end = found.end
    return not text[end:].strip()


def _paths(text: str, *, checked: bool = True) -> Iterator[_Path]:
    """Yield the paths of existing files in a line, in order.

    If `checked`, raises RequestError for a word that can only be the path of a picture, if it does not exist.
    """
    first = len(text) - len(text.lstrip())
    at = 0
    while match := _WORD.search(text, at):
        start = match.start() + (match[0][0] == "(")
        found = _path_at(text, start, spaced=start == first)
        if found:
            yield found
        elif checked and _can_only_be_a_picture(word := _word_at(text, start)):
            raise RequestError(f"{word}: no such file")
        at = found.end if found else match.end()


def _path_at(text: str, start: int, *, spaced: bool) -> _Path | None:
    """Return the longest path of a file that begins at `start`. `spaced`: a bare name may have spaces."""
    like_a_path = bool(_LIKE_A_PATH.match(text, start))
    shell = _SHELL_WORD.match(text, start)
    words = [word.end() for word in islice(_WORD.finditer(text, start), _MAX_WORDS if like_a_path or spaced else 1)]
    for end in [*([shell.end()] if shell else []), *reversed(words)]:
        stripped = start + len(text[start:end].rstrip(_PUNCTUATION))
        for last in dict.fromkeys((end, stripped)):
            if path := _existing(text[start:last], like_a_path=like_a_path):
                return _Path(start, last, path)
    return None


def _can_only_be_a_picture(word: str) -> bool:
    return "/" in word and "://" not in word and is_picture_name(word.strip("'\"").rstrip(_PUNCTUATION))


def _word_at(text: str, start: int) -> str:
    word = _SHELL_WORD.match(text, start) or _WORD.match(text, start)
    return word[0] if word else ""


def _existing(typed: str, *, like_a_path: bool) -> str | None:
    """Return the file that a text names. A bare word counts only if it names a picture."""
    if typed.startswith("file:"):
        path = _path_of_uri(typed)
    elif like_a_path or "." in typed or "/" in typed:
        path = typed_path(typed, alike=is_picture_name(typed.strip("'\"")))
    else:
        return None
    if not path or not exists(path) or not Path(path).is_file():
        return None
    return path if like_a_path or _is_shown(path) else None


def _path_of_uri(uri: str) -> str | None:
    parts = urlsplit(uri)
    return unquote(parts.path) if parts.netloc in ("", "localhost") else None


def _is_shown(path: str) -> bool:
    return is_picture(Path(path)) or is_document(Path(path))
