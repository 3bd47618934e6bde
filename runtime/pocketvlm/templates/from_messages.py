"""The messages of a request as turns for chat templates, with the texts traced. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pocketvlm.messages import AssistantMessage, Message, TextPart, ToolCall, ToolMessage
from pocketvlm.messages.parts import VideoPart
from pocketvlm.templates import given_texts
from pocketvlm.templates.given_texts import GivenText
from pocketvlm.templates.sandbox import Traced
from pocketvlm.templates.turns import Piece, Turn, Turns, VideoIndex


def turns_of(
    messages: Sequence[Message], *, knows_developer: bool, text_arguments: bool
) -> tuple[Turns, list[GivenText]]:
    """Return the messages as turns, and the texts in them, which are traced by their numbers in this list.

    A developer is the system, unless the template `knows_developer`. Arguments of calls become objects, or JSON text
    (`text_arguments`).
    """
    turns: list[Turn] = []
    texts: list[GivenText] = []
    pictures = 0

    def traced(text: str, role: str | None, path: str) -> Traced:
        texts.append(GivenText(text, role, path))
        return given_texts.traced(len(texts) - 1, text)

    for i, message in enumerate(messages):
        role = "system" if message.role == "developer" and not knows_developer else message.role
        pieces: list[Piece] = []
        for part in _parts(message):
            if isinstance(part, str):
                pieces.append(traced(part, role, f"messages.{i}.content"))
            else:
                pieces.append(part(pictures))
                pictures += 1
        turn = Turn(
            role,
            tuple(pieces),
            as_string=isinstance(message.content, str) or not pieces,
            name=None if message.name is None else Traced(message.name),
        )
        if isinstance(message, AssistantMessage):
            calls = tuple(_call(call, as_text=text_arguments) for call in message.tool_calls or ())
            thought = traced(message.thought, None, f"messages.{i}") if message.thought else ""
            turn = replace(turn, calls=calls, thought=thought)
        elif isinstance(message, ToolMessage) and message.tool_call_id is not None:
            turn = replace(turn, call_id=Traced(message.tool_call_id))
        turns.append(turn)
    return tuple(turns), texts


def traced_json(value: Any) -> Any:
    """Return a JSON value with all texts traced as the user's."""
    if isinstance(value, str):
        return Traced(value)
    if isinstance(value, Mapping):
        return {Traced(key): traced_json(item) for key, item in value.items()}
    return [traced_json(item) for item in value] if isinstance(value, list | tuple) else value


def _parts(message: Message) -> Iterator[str | type[int]]:
    """Yield the texts of a message, and the type of the index of a picture or video."""
    if isinstance(message.content, str):
        yield message.content
    else:
        for part in message.content or ():
            if isinstance(part, TextPart):
                yield part.text
            else:
                yield VideoIndex if isinstance(part, VideoPart) else int


def _call(call: ToolCall, *, as_text: bool) -> dict[str, Any]:
    """Return a call for templates: with the arguments as text, or as an object if they are one."""
    arguments: Any = call.function.arguments
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif isinstance(arguments, str) and not as_text:
        with suppress(ValueError, RecursionError):
            parsed = traced_json(json.loads(arguments))
            arguments = parsed if isinstance(parsed, dict) else arguments
    function = {"name": call.function.name, "arguments": arguments}
    entry: dict[str, Any] = traced_json({"type": "function", "id": call.id, "function": function})
    return entry
