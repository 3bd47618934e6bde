"""Tool calls in text: `<tool_call>` and a JSON object with name and arguments, as Hermes models write them.

Templates that know tools mostly use this form; models whose template knows none are told it in a system text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pocketvlm.errors import RequestError
from pocketvlm.messages import AssistantMessage, Message, SystemMessage, TextPart, Tool, ToolMessage, UserMessage
from pocketvlm.structured.schema import json_rule

BEGIN, END = "<tool_call>", "</tool_call>"
NAMED = '\n{"name": "%s", "arguments": '  # between BEGIN and the arguments
CLOSED = "}\n" + END  # behind them
MOST = 16  # calls in one answer
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_INTRODUCTION = "You can call these functions. Each line is one, as JSON:"
_EXPLANATION = (
    "To call one, answer with nothing but this, for each call:\n"
    f'{BEGIN}\n{{"name": "the function\'s name", "arguments": {{"its": "arguments"}}}}\n{END}\n'
    "The results come back between <tool_response> and </tool_response>."
)


def calls_rules(tools: Sequence[Tool], chosen: Sequence[int], *, several: bool) -> str:
    """Rules `calls`, one or more calls, and `call`, what follows the first BEGIN. `chosen` are positions in `tools`."""
    rules = [
        f"call: {' | '.join(f'call_{i}' for i in chosen)}",
        f"more: {_quoted(chr(10) + BEGIN)} call",
        f"calls: call more{{0,{MOST - 1}}}" if several else "calls: call",
    ]
    for i in chosen:
        function, param = tools[i].function, f"tools.{i}.function.parameters"
        schema = _ANY_OBJECT if function.parameters is None else function.parameters
        if schema.get("type", "object") != "object":
            raise RequestError("must describe an object", f"{param}.type")
        rules.append(f"call_{i}: {_quoted(NAMED % function.name)} arguments_{i} {_quoted(CLOSED)}")
        rules.append(f"arguments_{i}: {json_rule({**schema, 'type': 'object'}, param)}")
    return "\n".join(rules)


def _quoted(text: str) -> str:
    return json.dumps(text)


def described(tools: Sequence[Tool], introduction: str | None) -> str:
    """The system text of a model whose template knows no tools."""
    lines = [json.dumps(tool.function.model_dump(exclude_none=True), ensure_ascii=False) for tool in tools]
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
                f'{BEGIN}\n{{"name": {json.dumps(call.function.name)}, "arguments": {_json(call.function.arguments)}}}'
                f"\n{END}"
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


def _before(text: str, content: Any) -> Any:
    if isinstance(content, str):
        return f"{text}\n\n{content}"
    return (TextPart(type="text", text=text + "\n\n"), *content)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
