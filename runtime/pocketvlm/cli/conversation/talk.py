"""The loop of a conversation: read what is typed, and do it. Errors are shown, and the conversation goes on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pocketvlm.cli.answer_report import err
from pocketvlm.cli.conversation.commands import NAMES, Commands, Ended
from pocketvlm.cli.conversation.last_conversation import LastConversation, keep_last, last_file
from pocketvlm.cli.conversation.models import Models
from pocketvlm.cli.conversation.plain_lines import PlainLines
from pocketvlm.cli.conversation.screen import Screen
from pocketvlm.cli.conversation.state import Conversation
from pocketvlm.cli.conversation.terminal import begin_import, echo_file, not_echoed
from pocketvlm.cli.conversation.turns import Turns
from pocketvlm.cli.conversation.typed_message import TypedCommand, read_typed
from pocketvlm.errors import ContextLengthError, PocketVLMError

if TYPE_CHECKING:
    from pocketvlm.cli.conversation.edited_lines import EditedLines

_PLACEHOLDER = "Ask, or drop a picture here. /help lists the commands."


def talk(
    conversation: Conversation,
    models: Models,
    pictures: Sequence[str | bytes],
    *,
    private: bool = False,
    preview: bool = True,
    timings: bool = False,
) -> None:
    """Talk until the input ends. `private` keeps nothing; `pictures` are shown with the first question.

    From a pipe or a file, the first error ends it: raises PocketVLMError.
    """
    screen = Screen()
    screen.preview = screen.preview and preview
    screen.timings = timings
    keep = _Keeper(conversation, models, screen, private=private or not screen.interactive)
    turns = Turns(conversation, screen, keep)
    commands = Commands(conversation, screen, turns, models)
    lines = _lines(screen, private=private)
    if screen.interactive:
        _greet(conversation, screen, private=private)
    turns.attach(*pictures)
    while True:
        try:
            text = lines.read()
        except EOFError:
            return
        try:
            with not_echoed():
                _do(text, screen, turns, commands)
        except Ended:
            return
        except KeyboardInterrupt:
            if not screen.interactive:
                raise
            screen.say("stopped")
        except (PocketVLMError, OSError) as error:
            expected = error if isinstance(error, PocketVLMError) else PocketVLMError(str(error))
            if not screen.interactive:
                raise expected from None
            screen.error(expected)
            if isinstance(error, ContextLengthError):
                screen.say("/reset begins a new conversation")


def _do(text: str, screen: Screen, turns: Turns, commands: Commands) -> None:
    typed = read_typed(text, NAMES)
    if isinstance(typed, TypedCommand):
        commands.run(typed)
        return
    turns.attach(*typed.pictures)
    for other in typed.others:
        screen.say(f"{other} is not a picture, PDF or video; the model sees only its name")
    if typed.question:
        turns.ask(typed.question)


def _lines(screen: Screen, *, private: bool) -> PlainLines | EditedLines:
    if (output := echo_file()) is not None:
        # These take as long to import as a small model to load, and nothing else needs them.
        from pocketvlm.cli.conversation.completion import complete
        from pocketvlm.cli.conversation.edited_lines import EditedLines
        from pocketvlm.cli.conversation.history import FileHistory, history_file

        history = None if private else FileHistory(history_file())
        # What renders answers is imported while the first question is typed, and not before its prompt is there.
        return EditedLines(output, complete, history, _PLACEHOLDER, shown=partial(begin_import, "answer"))
    return PlainLines(interactive=screen.interactive)


def _greet(conversation: Conversation, screen: Screen, *, private: bool) -> None:
    err.print(conversation.vlm.info.name, style="bold", markup=False)
    if about := conversation.run_notes.about_model():
        screen.say(about)
    questions = sum(message["role"] == "user" for message in conversation.messages)
    if questions:
        screen.say(f"goes on after {questions} question{'s' if questions > 1 else ''}")
    if not screen.edits:
        screen.say("/help lists the commands")
    if not private and not last_file().exists():
        screen.say(f"What is typed and the last conversation are kept in {last_file().parent}, readable by you alone.")
        screen.say("--private keeps nothing.")


class _Keeper:
    """Keeps the conversation for `chat --continue`, unless it is private."""

    def __init__(self, conversation: Conversation, models: Models, screen: Screen, *, private: bool) -> None:
        self._conversation = conversation
        self._models = models
        self._screen = screen
        self._is_on = not private

    def __call__(self) -> None:
        conversation, models = self._conversation, self._models
        if not self._is_on:
            return
        last = LastConversation(conversation.messages, conversation.seen, models.model, models.mmproj)
        self._is_on = keep_last(last, self._screen.say)
