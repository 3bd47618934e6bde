"""The commands of a conversation: what each is called, what it needs, and what it says when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pocketvlm.cli.conversation.clipboard import copy
from pocketvlm.cli.conversation.models import Models
from pocketvlm.cli.conversation.screen import Screen
from pocketvlm.cli.conversation.state import FIELDS, PICTURE_OPTIONS, Conversation
from pocketvlm.cli.conversation.terminal import echo_file
from pocketvlm.cli.conversation.turns import Turns
from pocketvlm.cli.conversation.typed_message import BLOCK, TypedCommand, picture_source, read_message
from pocketvlm.cli.typed_path import exists, typed_path
from pocketvlm.errors import RequestError

Argument = Literal["", "PICTURE", "FILE", "[TEXT]", "[MODEL]", "[NAME VALUE]"]


class Ended(Exception):  # noqa: N818  # it is not an error
    """The conversation was ended by a command."""


@dataclass(frozen=True)
class Command:
    name: str
    argument: Argument
    help: str


COMMANDS = (
    Command("/image", "PICTURE", "shows a picture, PDF or video with the next question"),
    Command("/retry", "", "asks the last question again"),
    Command("/copy", "", "copies the last answer to the clipboard"),
    Command("/system", "[TEXT]", 'sets or shows the system message; "" removes it'),
    Command("/set", "[NAME VALUE]", "changes or lists settings, such as /set temperature 0.7"),
    Command("/model", "[MODEL]", "goes on with another model, or lists those that were pulled"),
    Command("/reset", "", "begins a new conversation"),
    Command("/save", "FILE", "writes the conversation with its pictures to a file"),
    Command("/load", "FILE", "goes on with a conversation from such a file"),
    Command("/timings", "", "prints how long answers take, or stops that"),
    Command("/clear-cache", "", "forgets what was computed for pictures"),
    Command("/help", "", "lists the commands"),
    Command("/bye", "", "ends the conversation"),
)
ALIASES = {"/quit": "/bye", "/exit": "/bye", "/?": "/help"}
NAMES = [command.name for command in COMMANDS] + [*ALIASES]
SETTINGS = (*FIELDS, *PICTURE_OPTIONS, "preview")
_KEYS = f"""\
A path in a question, typed or dropped, shows that picture. {BLOCK} begins and ends a text of several lines; so does
Alt-Enter for one line break. Tab completes commands and paths, Up recalls what was typed. Ctrl-C clears the line or
stops an answer, Ctrl-D ends."""


class Commands:
    """Carries commands out. Each says in a line that it is done."""

    def __init__(self, conversation: Conversation, screen: Screen, turns: Turns, models: Models) -> None:
        self._conversation = conversation
        self._screen = screen
        self._turns = turns
        self._models = models
        self._actions: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/retry": lambda _: turns.retry(),
            "/copy": self._copy,
            "/system": self._system,
            "/set": self._set,
            "/model": self._model,
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/timings": self._timings,
            "/clear-cache": self._clear_cache,
            "/help": self._help,
            "/bye": self._bye,
        }

    def run(self, command: TypedCommand) -> None:
        """Carry a command out. Raises Ended, and PocketVLMError or OSError where it fails."""
        name = ALIASES.get(command.name, command.name)
        known = next(known for known in COMMANDS if known.name == name)
        if known.argument in ("PICTURE", "FILE") and not command.argument:
            raise RequestError(f"needs a path; use {name} PATH", name)
        self._actions[name](command.argument)

    def _image(self, text: str) -> None:
        """One path, which may have spaces, or several."""
        source = picture_source(text)
        message = read_message(text) if not exists(source) and " " in text else None
        self._turns.attach(*(message.pictures if message and not message.question else [source]))

    def _copy(self, _: str) -> None:
        answer = self._conversation.last_answer
        if not answer:
            raise RequestError("there is no answer yet", "/copy")
        taker = copy(answer, echo_file())
        if taker is None:
            raise RequestError("there is no clipboard here; install wl-copy, xclip or xsel", "/copy")
        self._screen.say(f"copied {len(answer)} characters, by {taker}")

    def _system(self, text: str) -> None:
        if not text:
            self._screen.print(str(self._conversation.system or "there is no system message"))
            return
        self._conversation.system = text.strip("\"'").strip() or None
        self._screen.say("system message set" if self._conversation.system else "system message removed")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if not name:
            values: dict[str, Any] = self._conversation.settings() | {"preview": self._screen.preview}
            self._screen.print("\n".join(f"{name:20}{_shown(value)}" for name, value in values.items()))
        elif not value:
            raise RequestError(f"needs a value; use /set {name} VALUE, or default", "/set")
        elif name == "preview":
            if value not in ("on", "off", "default"):
                raise RequestError("must be on or off", "preview")
            self._screen.preview = value != "off" and self._screen.renders
            self._screen.say(f"preview {_shown(self._screen.preview)}")
        else:
            self._conversation.set(name, value.strip())
            self._screen.say(f"{name} {_shown(self._conversation.settings()[name])}")

    def _model(self, text: str) -> None:
        if not text:
            self._screen.print("\n".join(self._models.names()))
            return
        self._models.switch(self._conversation, typed_path(text))
        self._screen.say(f"model {self._conversation.vlm.info.name}; the conversation goes on with it")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._screen.say("new conversation")

    def _save(self, text: str) -> None:
        path = typed_path(text, alike=False)
        self._conversation.save(path)
        self._screen.say(f"saved to {path}: {self._extent()}")

    def _load(self, text: str) -> None:
        path = typed_path(text)
        self._conversation.load(path)
        self._screen.say(f"loaded {Path(path).name}: {self._extent()}")

    def _timings(self, _: str) -> None:
        self._screen.timings = not self._screen.timings
        self._screen.say(f"timings {_shown(self._screen.timings)}")

    def _clear_cache(self, _: str) -> None:
        self._conversation.vlm.clear_picture_cache()
        self._screen.say("picture cache is empty")

    def _help(self, _: str) -> None:
        usages = [(f"{command.name} {command.argument}", command.help) for command in COMMANDS]
        self._screen.table(usages)
        self._screen.print(_KEYS.replace("\n", " "))

    def _bye(self, _: str) -> None:
        raise Ended

    def _extent(self) -> str:
        questions = sum(message["role"] == "user" for message in self._conversation.messages)
        pictures = self._conversation.count_pictures()
        return f"{_counted(questions, 'question')}, {_counted(pictures, 'picture')}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _shown(value: object) -> str:
    if value is None:
        return "default"
    return ("off", "on")[value] if isinstance(value, bool) else str(value)
