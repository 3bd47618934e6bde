"""Pictures on the command line: any number after -i, as a shell makes of *.png, and behind or before the question."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pocketvlm.cli.conversation.typed_message import picture_source
from pocketvlm.cli.help import Command
from pocketvlm.cli.typed_path import typed_path
from pocketvlm.errors import ImageError
from pocketvlm.messages.file_kinds import HEAD, is_pdf, video_format
from pocketvlm.pictures.formats import is_picture_name
from pocketvlm.pictures.sources import is_url

_MODELS = (".gguf", ".onnx")
_SEPARATORS = ("/", os.sep)


class PictureCommand(Command):
    """A command whose option -i, if it has one, takes all files that follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [*_repeated(args, *_picture_option(self))])


def _picture_option(command: Command) -> tuple[str, ...]:
    return next((tuple(parameter.opts) for parameter in command.params if "-i" in parameter.opts), ())


def _repeated(words: Sequence[str], *option: str) -> Iterator[str]:
    """Yield the words, with the option before every existing file that follows its first value."""
    value_comes = in_list = False
    for place, word in enumerate(words):
        if word == "--":
            yield from words[place:]
            return
        if value_comes:
            value_comes, in_list = False, True
        elif word in option:
            value_comes = True
        elif option and word.startswith(("-i", *(f"{name}=" for name in option))):
            in_list = True
        elif in_list and _is_file(word) and not word.lower().endswith(_MODELS):
            yield option[0]
        else:
            in_list = False
        yield word


def question_and_pictures(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the question and the pictures among arguments: the question is the first that is not a picture."""
    place = next((place for place, word in enumerate(words) if not _is_picture(word, alone=len(words) == 1)), None)
    if place is None:
        return None, [*words]
    return words[place], [*words[:place], *words[place + 1 :]]


def named_picture(argument: str) -> str | bytes:
    """Return the path or URL of a picture, or the bytes of standard input for -. Raises ImageError."""
    if argument != "-":
        return picture_source(argument)
    data = sys.stdin.buffer.read()
    if not data:
        raise ImageError("standard input is empty; it should be a picture", "-i -")
    return data


def has_pages(picture: str | bytes) -> bool:
    """Return whether a picture that was named or read is a PDF or a video by its content, whatever its name."""
    head = b""
    if isinstance(picture, bytes):
        head = picture[:HEAD]
    elif not is_url(picture):
        with suppress(OSError, ValueError):
            if (path := Path(picture)).is_file():  # reading a pipe would take from it
                with path.open("rb") as file:
                    head = file.read(HEAD)
    return is_pdf(head) or video_format(head) is not None


def _is_picture(word: str, *, alone: bool) -> bool:
    """Return whether an argument means a picture. If it is `alone`, the name of a file may be a question, too."""
    if word == "-" or is_url(word):
        return True
    named = is_picture_name(word) and len(word.split()) == 1
    in_folder = any(separator in word for separator in _SEPARATORS)
    return named or (_is_file(word) and (not alone or in_folder or bool(Path(word).suffix)))


def _is_file(word: str) -> bool:
    with suppress(OSError, ValueError):  # a text that is too long for a name, NUL
        return Path(typed_path(word)).is_file()
    return False
