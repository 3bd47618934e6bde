"""Tools in a prompt, and the grammar of their calls.

Models whose template has no form for calls are told the tools, and the form of Hermes models, in a system text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pocketvlm.errors import RequestError
from pocketvlm.messages import AssistantMessage, Message, SystemMessage, TextPart, Tool, ToolMessage, UserMessage
from pocketvlm.structured.schema import json_rule
from pocketvlm.structured.tool_call_format import HERMES, ToolCallFormat

_ONE = HERMES.opening + "%s" + HERMES.middle + "%s" + HERMES.closing
MOST = 16  # calls in one answer
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_INTRODUCTION = "You can call these functions. Each line is one, as JSON:"
_EXPLANATION = (
    "To call one, answer with nothing but this, for each call:\n"
    + _ONE % ("the function's name", '{"its": "arguments"}')
    + "\n"
    + "The results come back between <tool_response> and </tool_response>."
)


def calls_rules(tools: Sequence[Tool], chosen: Sequence[int], form: ToolCallFormat, *, several: bool) -> str:
    """Rules `calls`: what follows the mark of the first call. `chosen` are positions in `tools`."""
    calls = ["calls: head call tail", f"head: {form.rule(form.opening.removeprefix(form.mark))}"]
    if several and form.gap is not None:
        calls = [f"calls: head call (gap call){{0,{MOST - 1}}} tail", calls[1], f"gap: {form.rule(form.gap)}"]
    rules = [*calls, f"tail: {form.rule(form.closing)}", f"call: {' | '.join(f'call_{i}' for i in chosen)}"]
    for i in chosen:
        function, param = tools[i].function, f"tools.{i}.function.parameters"
        schema = _ANY_OBJECT if function.parameters is None else function.parameters
        if schema.get("type", "object") != "object":
            raise RequestError("must describe an object", f"{param}.type")
        rules.append(f"call_{i}: {form.rule(function.name + form.middle)} arguments_{i}")
        rules.append(f"arguments_{i}: {json_rule({**schema, 'type': 'object'}, param)}")
    return "\n".join(rules)


def plain(tool: Tool) -> dict[str, Any]:
    """The function as it was given."""
    return tool.function.model_dump(exclude_none=True)


def described(tools: Sequence[Tool], introduction: str | None) -> str:
    """The system text of a model whose template knows no tools."""
    lines = [json.dumps(plain(tool), ensure_ascii=False) for tool in tools]
    return "\n".join([introduction or _INTRODUCTION, *lines, _EXPLANATION])


def told(messages: Sequence[Message], text: str, *, system: bool) -> list[Message]:
    """`text` before all else: in the system message (`system`), or in the first question."""
    found = list(messages)
    wanted = ("system", "developer") if system else ("user",)
    for i, message in enumerate(found[:1] if system else found):
        if message.role in wanted:
            found[i] = message.model_copy(update={"content": _before(text, message.content)})
            return found
    first: Message = SystemMessage(role="system", content=text) if system else UserMessage(role="user", content=text)
    return [first, *found]


def spelled(messages: Sequence[Message]) -> list[Message]:
    """Earlier calls and their results as text, for templates that know neither."""
    found: list[Message] = []
    answered = False  # the message before is of results
    for message in messages:
        if isinstance(message, AssistantMessage) and message.tool_calls:
            calls = [
                _ONE % (json.dumps(call.function.name)[1:-1], _json(call.function.arguments))
                for call in message.tool_calls
            ]
            text = "\n".join(filter(None, [_text(message.content), *calls]))
            found.append(AssistantMessage(role="assistant", content=text, name=message.name))
        elif isinstance(message, ToolMessage):
            text = f"<tool_response>\n{_text(message.content)}\n</tool_response>"
            if answered:
                text = f"{found.pop().content}\n{text}"
            found.append(UserMessage(role="user", content=text))
        else:
            found.append(message)
        answered = isinstance(message, ToolMessage)
    return found


def numbered(messages: Sequence[Message]) -> list[Message]:
    """With ids of nine digits, in the order in which they come."""
    ids: dict[str, str] = {}

    def short(given: str) -> str:
        return ids.setdefault(given, f"{len(ids):09}")

    found: list[Message] = []
    for message in messages:
        if isinstance(message, AssistantMessage) and message.tool_calls:
            calls = tuple(call.model_copy(update={"id": short(call.id)}) for call in message.tool_calls)
            message = message.model_copy(update={"tool_calls": calls})
        elif isinstance(message, ToolMessage) and message.tool_call_id is not None:
            message = message.model_copy(update={"tool_call_id": short(message.tool_call_id)})
        found.append(message)
    return found


def _before(text: str, content: Any) -> Any:
    if isinstance(content, str):
        return f"{text}\n\n{content}"
    return (TextPart(type="text", text=text + "\n\n"), *content)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
