"""How a chat template reads the thoughts of earlier answers, detected by having it write some."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeAlias

from pocketvlm.templates import sandbox
from pocketvlm.templates.sandbox import Traced

THINK, THINK_END = "<think>", "</think>"
# In fields of the message, in its text between the marks, or as a part of its content.
ThoughtForm: TypeAlias = Literal["fields", "text", "part"]
_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_text", "thought")
_THOUGHT, _ANSWER = "pocketthought", "pocketanswer"  # in probes


def with_thought(entry: Mapping[str, Any], thought: str, form: ThoughtForm) -> dict[str, Any]:
    """Return an assistant's message with its thought as the template reads it."""
    content = entry["content"]
    if thought and form == "fields":
        return {**entry, **dict.fromkeys(_FIELDS, thought)}
    if not thought or content is None:
        return {**entry}
    if form == "text":
        # The marks are the template's, because the user did not write them.
        marked = sandbox.joined([f"{THINK}\n", thought, f"\n{THINK_END}\n\n"])
        if isinstance(content, list):
            return {**entry, "content": [{"type": "text", "text": marked}, *content]}
        return {**entry, "content": sandbox.joined([marked, content])}
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    return {**entry, "content": [{"type": "thinking", "thinking": thought}, *parts]}


def detect_thought_form(run: Callable[[list[dict[str, Any]]], str], content: Callable[[str, str], Any]) -> ThoughtForm:
    """Return the form of thoughts that a template reads: fields where it reads none.

    `run` renders messages without a prompt for an answer, with thinking switched on. `content` returns a role's text in
    the form that the template accepts.
    """

    def prompts(form: ThoughtForm) -> list[str]:
        written = []
        for conversation in _conversations(content):
            entries = [with_thought(entry, Traced(_THOUGHT) if thinks else "", form) for entry, thinks in conversation]
            with suppress(Exception):  # a template may raise anything
                written.append(run(entries))
        return written

    if any(_THOUGHT in prompt for prompt in prompts("fields")):
        return "fields"
    in_text = [_THOUGHT in prompt for prompt in prompts("text") if _ANSWER in prompt]
    if any(in_text) and not all(in_text):  # it drops some thoughts, so it knows them; otherwise it writes any text
        return "text"
    # A template that does not know such parts may write them out in Python's notation or as JSON.
    if any(_THOUGHT in prompt and not re.search("['\"]thinking['\"]", prompt) for prompt in prompts("part")):
        return "part"
    return "fields"


def _conversations(content: Callable[[str, str], Any]) -> Sequence[Sequence[tuple[dict[str, Any], bool]]]:
    """Return conversations as messages, each with whether it gets a thought.

    Many templates keep thoughts of the last turn only, or only those from before a call.
    """
    question = {"role": "user", "content": content("user", "pocket")}, False
    answer = {"role": "assistant", "content": content("assistant", _ANSWER)}
    function = {"name": "pocket", "arguments": {"pocket": "vlm"}}
    calls = {**answer, "tool_calls": [{"type": "function", "id": "pockcall1", "function": function}]}
    result = {"role": "tool", "content": "pocket", "tool_call_id": "pockcall1", "name": "pocket"}
    return [
        [question, (answer, True), question, (answer, False), question],
        [question, (answer, True), question],
        [question, (answer, True)],
        [question, (calls, True), (result, False)],
        [question, (answer, False), question, ({**calls, "content": content("assistant", "")}, True), (result, False)],
    ]
