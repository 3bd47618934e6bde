"""Tools in a prompt, and the grammar of their calls.

Where a model's template has no form for calls, a system text describes the tools and the form of Hermes models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pocketvlm.errors import UnsupportedError
from pocketvlm.messages import (
    AssistantMessage,
    Content,
    Message,
    Part,
    SystemMessage,
    TextPart,
    Tool,
    ToolMessage,
    UserMessage,
)
from pocketvlm.native.grammar import MAX_GRAMMAR, SchemaRule
from pocketvlm.structured.schema import compile_schema
from pocketvlm.structured.tool_call_format import HERMES, ToolCallFormat

MAX_CALLS = 16  # in one answer
_MAX_SCHEMAS = MAX_GRAMMAR * 3 // 4  # characters of all tools: the rest of the grammar needs room, too
_CALL = HERMES.opening + "%s" + HERMES.middle + "%s" + HERMES.closing
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}}
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_INTRODUCTION = "You can call these functions. Each line is one, as JSON:"
_EXPLANATION = (
    "To call one, answer with nothing but this, for each call:\n"
    + _CALL % ("the function's name", '{"its": "arguments"}')
    + "\n"
    + "The results come back between <tool_response> and </tool_response>."
)


def call_rules(tools: Sequence[Tool], chosen: Sequence[int], call_format: ToolCallFormat, *, several: bool) -> str:
    """Return the rule `calls`, which follows the mark of the first call, and the rules it uses.

    `chosen` are the indices of the tools that may be called. The rules `arguments_INDEX` are those of
    `argument_schemas`.
    """
    calls, gap_rules = "head call tail", []
    if several and call_format.gap is not None:
        calls = f"head call (gap call){{0,{MAX_CALLS - 1}}} tail"
        gap_rules = [f"gap: {call_format.rule(call_format.gap)}"]
    rules = [
        f"calls: {calls}",
        f"head: {call_format.rule(call_format.opening.removeprefix(call_format.mark))}",
        *gap_rules,
        f"tail: {call_format.rule(call_format.closing)}",
        f"call: {' | '.join(f'call_{i}' for i in chosen)}",
    ]
    for i in chosen:
        rules.append(f"call_{i}: {call_format.rule(tools[i].function.name + call_format.middle)} arguments_{i}")
    return "\n".join(rules)


def argument_schemas(
    tools: Sequence[Tool], chosen: Sequence[int], *, pretty: bool
) -> tuple[list[SchemaRule], list[str]]:
    """Return a rule for the arguments of each chosen tool, and the paths of what none of them enforces.

    Raises UnsupportedError for a tool with `strict: true` that cannot be enforced.
    """
    rules: list[SchemaRule] = []
    left_out: list[tuple[str, ...]] = []  # of each rule
    any_object = compile_schema(_ANY_OBJECT, "tools", pretty=pretty)
    for i in chosen:
        function, param = tools[i].function, f"tools.{i}.{tools[i].parameters_field}"
        try:
            compiled = compile_schema(
                _NO_ARGUMENTS if function.parameters is None else function.parameters,
                param,
                owner=f'the tool "{function.name}"',
                strict=bool(function.strict),
                pretty=pretty,
                is_object=True,
                leave_out_costly=True,
            )
        except UnsupportedError:
            if function.strict:
                raise
            compiled = replace(any_object, left_out=(param,))  # too large
        weaker = None if function.strict else any_object.rule
        rules.append(SchemaRule(f"arguments_{i}", compiled.rule, param, weaker))
        left_out.append(compiled.left_out)
    total = sum(len(rule.text) for rule in rules)
    for i in sorted(range(len(rules)), key=lambda i: len(rules[i].text), reverse=True):
        rule = rules[i]
        if total <= _MAX_SCHEMAS or rule.weaker is None or rule.text == rule.weaker:
            break  # a strict one is refused by what compiles the grammar
        total -= len(rule.text) - len(rule.weaker)
        rules[i], left_out[i] = replace(rule, text=rule.weaker), (rule.param,)
    return rules, [path for paths in left_out for path in paths]


def function_fields(tool: Tool) -> dict[str, Any]:
    """Return the function's fields as the request has them."""
    return tool.function.model_dump(exclude_none=True)


def describe_tools(tools: Sequence[Tool], introduction: str | None) -> str:
    """Return a system text for a model whose template does not know tools."""
    functions = [json.dumps(function_fields(tool), ensure_ascii=False) for tool in tools]
    return "\n".join([introduction or _INTRODUCTION, *functions, _EXPLANATION])


def with_instructions(messages: Sequence[Message], text: str, *, system: bool) -> list[Message]:
    """Put `text` before everything else: into the system message, or without `system` into the first user message."""
    changed = list(messages)
    roles = ("system", "developer") if system else ("user",)
    for i, message in enumerate(changed[:1] if system else changed):
        if message.role in roles:
            changed[i] = message.model_copy(update={"content": _prepend(text, message.content)})
            return changed
    first: Message = SystemMessage(role="system", content=text) if system else UserMessage(role="user", content=text)
    return [first, *changed]


def calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """Write earlier calls and their results as text, for templates that know neither."""
    changed: list[Message] = []
    after_result = False
    for message in messages:
        if isinstance(message, AssistantMessage) and message.tool_calls:
            calls = [
                _CALL
                % (json.dumps(call.function.name, ensure_ascii=False)[1:-1], _arguments_text(call.function.arguments))
                for call in message.tool_calls
            ]
            said = [message.content, "\n"] if message.content else []
            content = _joined(*said, "\n".join(calls))
            changed.append(message.model_copy(update={"content": content, "tool_calls": None}))
        elif isinstance(message, ToolMessage):
            result: list[Content | None] = ["<tool_response>\n", message.content, "\n</tool_response>"]
            if after_result:  # results that follow each other become one message
                result = [changed.pop().content, "\n", *result]
            changed.append(UserMessage(role="user", content=_joined(*result)))
        else:
            changed.append(message)
        after_result = isinstance(message, ToolMessage)
    return changed


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """Replace the ids of calls by ids of nine digits, in the order in which they come."""
    short_ids: dict[str, str] = {}

    def shorten(call_id: str) -> str:
        return short_ids.setdefault(call_id, f"{len(short_ids):09}")

    changed: list[Message] = []
    for message in messages:
        if isinstance(message, AssistantMessage) and message.tool_calls:
            calls = tuple(call.model_copy(update={"id": shorten(call.id)}) for call in message.tool_calls)
            message = message.model_copy(update={"tool_calls": calls})
        elif isinstance(message, ToolMessage) and message.tool_call_id is not None:
            message = message.model_copy(update={"tool_call_id": shorten(message.tool_call_id)})
        changed.append(message)
    return changed


def _prepend(text: str, content: Any) -> Any:
    if isinstance(content, str):
        return f"{text}\n\n{content}"
    return (TextPart(type="text", text=text + "\n\n"), *content)


def _joined(*contents: Content | None) -> Content:
    """Join contents: to a string where none has a picture, else to parts."""
    parts: list[Part] = []
    for content in contents:
        parts += [TextPart(type="text", text=content)] if isinstance(content, str) else content or ()
    if all(isinstance(part, TextPart) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    return tuple(parts)


def _arguments_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
