"""What Tab completes: commands, their arguments, and paths of pictures in a question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit.completion import Completion

from pocketvlm.cli.conversation.commands import ALIASES, COMMANDS, SETTINGS
from pocketvlm.cli.conversation.paths_of_word import complete_path
from pocketvlm.files.locate import pulled_models
from pocketvlm.pictures.formats import is_document, is_picture

_DETAILS = ("low", "auto", "high")


def complete(text: str) -> Iterator[Completion]:
    """Yield what may follow `text`, which stands before the cursor."""
    name, space, argument = text.partition(" ")
    if not space:
        if name.startswith("/"):
            for one in COMMANDS:
                if one.name.startswith(name):
                    end = " " if one.argument else ""
                    yield Completion(one.name + end, -len(name), one.name, display_meta=one.help)
        if "\n" not in text and name.count("/") == 1 and name.startswith("/") and len(name) > 1:
            return  # the folders of the root would hide the commands
        yield from _paths(text)
        return
    command = next((one for one in COMMANDS if one.name == ALIASES.get(name, name)), None)
    if command is None:
        yield from _paths(text)
    elif command.argument == "PICTURE":
        yield from _paths(text, empty=True)
    elif command.argument == "FILE":
        yield from _paths(text, is_wanted=lambda _: True, empty=True)
    elif command.argument == "[MODEL]":
        yield from _words(argument, ["iota", *pulled_models()])
        if argument:
            yield from _paths(text, is_wanted=lambda path: path.suffix == ".gguf")
    elif command.name == "/set":
        setting, space, value = argument.partition(" ")
        if not space:
            yield from _words(setting, SETTINGS)
        else:
            known = {"detail": _DETAILS, "preview": ("on", "off")}.get(setting, ())
            yield from _words(value, [*known, "default"])


def _words(begun: str, words: Iterable[str]) -> Iterator[Completion]:
    for word in words:
        if word.startswith(begun):
            yield Completion(word, -len(begun))


def _paths(text: str, is_wanted: object = None, *, empty: bool = False) -> Iterator[Completion]:
    wanted = is_wanted if callable(is_wanted) else _is_shown
    for path in complete_path(text, wanted):
        if path.length or empty:
            yield Completion(path.text, -path.length, path.name)


def _is_shown(path: Path) -> bool:
    return is_picture(path) or is_document(path)
