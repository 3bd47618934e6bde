"""What a person has typed: a command, or a question with the paths of pictures in it.

A path may be quoted, escaped, begin with ~ or be a file: URI, as terminals write what is dropped on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pocketvlm.cli.typed_path import exists, typed_path
from pocketvlm.errors import RequestError
from pocketvlm.pictures.formats import is_document, is_picture, is_picture_name

BLOCK = '"""'  # around several lines
_MAX_WORDS = 32  # of a path whose spaces are not escaped
_MAX_SPACED = 16  # such paths in a line: each word more is looked up
_MAX_LOOKED_UP = 200  # words of a line
_MAY_BE_A_PATH = re.compile(r"""[/\\.~'"]""")
_LIKE_A_PATH = re.compile(r"""['"]?(?:~|/|\./|\.\./|[A-Za-z]:[\\/]|file:)""")
_PUNCTUATION = "?!.,;:)"
_ENDS = "?!.:;,"  # of a sentence, after which a path is not part of it
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
    """A path in a text: where it stands, and what it means."""

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
        name, argument = [*text.split(maxsplit=1), ""][:2]
        if name in commands:
            return TypedCommand(name, argument)
        path = next(_paths(text), None)
        if path is None or path.start:
            if "/" in name[1:]:
                raise RequestError(f"{name}: no such file, and not a command; /help lists the commands")
            raise RequestError(f"unknown command {name}; /help lists the commands")
    return read_message(text)


def read_message(text: str) -> TypedMessage:
    """Find the pictures in a question.

    Paths before the question are taken out of it, and so are those after its last sentence. One within a sentence
    leaves its file name. In a text of several lines, only lines that are nothing but paths count, because pasted text
    may mention any file.
    """
    if "\n" in text:
        return _read_lines(text.split("\n"))
    paths = [*_paths(text)]
    shown = [path for path in paths if _is_shown(path.path)]
    others = [text[path.start : path.end] for path in paths if path not in shown]
    if not shown:
        return TypedMessage(text.strip(), (), tuple(others))
    first, last = _sentence(text, shown)
    kept, end = [], first
    for path in shown:
        if first <= path.start and path.end <= last:
            kept += [text[end : path.start], Path(path.path).name]
            end = path.end
    kept.append(text[end:last])
    return TypedMessage("".join(kept).strip(), tuple(path.path for path in shown), tuple(others))


def _read_lines(lines: list[str]) -> TypedMessage:
    kept, pictures = [], list[str]()
    for line in lines:
        paths = [*_paths(line, checked=False)]
        if paths and all(_is_shown(path.path) for path in paths) and not _around(line, paths).strip():
            pictures += [path.path for path in paths]
        else:
            kept.append(line)
    return TypedMessage("\n".join(kept).strip(), tuple(pictures))


def _sentence(text: str, paths: list[_Path]) -> tuple[int, int]:
    """Return where the question begins and ends, without the paths before and after it."""
    first, last = 0, len(text)
    for path in paths:
        if text[first : path.start].strip():
            break
        first = path.end
    for path in reversed(paths):
        if text[path.end : last].strip() or path.start < first:
            break
        last = path.start
    before = text[first:last].rstrip()
    return first, last if not before or before[-1] in _ENDS else len(text)


def _around(text: str, paths: list[_Path]) -> str:
    """Return a text without its paths."""
    ends = [0, *(path.end for path in paths)]
    starts = [*(path.start for path in paths), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts, strict=True))


def picture_source(text: str) -> str:
    """Return the path or URL of a picture that a person has typed."""
    if text.startswith("file:"):
        return _path_of_uri(text) or text
    return text if text.startswith(("data:", "http:", "https:")) else typed_path(text)


def _paths(text: str, *, checked: bool = True) -> Iterator[_Path]:
    """Yield the paths of existing files in a line, in order.

    If `checked`, raises RequestError for a word that can only be the path of a picture, if it does not exist.
    """
    tries = _MAX_SPACED
    at = words = 0
    while (match := _WORD.search(text, at)) and words < _MAX_LOOKED_UP:
        if at and not _MAY_BE_A_PATH.search(match[0]):
            at = match.end()
            continue
        words += 1
        start = match.start() + (match[0][0] == "(")
        spaced = tries > 0 and (at == 0 or bool(_LIKE_A_PATH.match(text, start)))
        tries -= spaced
        path = _path_at(text, start, _MAX_WORDS if spaced else 1)
        if path:
            yield path
        elif checked and _can_only_be_a_picture(word := _word_at(text, start)):
            raise RequestError(f"{word}: no such file")
        at = path.end if path else match.end()


def _path_at(text: str, start: int, most: int) -> _Path | None:
    """Return the longest path of a file that begins at `start`, of at most `most` words."""
    like_a_path = bool(_LIKE_A_PATH.match(text, start))
    shell = _SHELL_WORD.match(text, start)
    words = [word.end() for word in islice(_WORD.finditer(text, start), most)]
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
    from pocketvlm.pictures.sources import path_of_uri  # with it come the messages, which take a while to import

    return path_of_uri(uri)


def _is_shown(path: str) -> bool:
    return is_picture(Path(path)) or is_document(Path(path))
