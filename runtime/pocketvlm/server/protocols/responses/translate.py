"""A request of Responses as a chat request, with the places that its fields come from, for errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketvlm.server.protocols.responses.items import (
    CallOutputItem,
    ClientCallItem,
    CustomCallItem,
    FunctionCallItem,
    Item,
    MessageItem,
    ReasoningItem,
)
from pocketvlm.server.protocols.responses.schema import SAME, CreateResponse
from pocketvlm.server.protocols.responses.tools import Toolbox, chat_call

Paths = dict[str, str]  # from a field of the chat request to the client's field


def translate(
    request: CreateResponse, items: Iterable[tuple[Item, str]], toolbox: Toolbox
) -> tuple[dict[str, Any], Paths]:
    """Return the body of a chat request, and the paths of its fields in `request`.

    `items` are those of the whole conversation, each with its path. Raises RequestError.
    """
    messages = _Messages()
    if request.instructions is not None:
        messages.add_text("system", request.instructions, "instructions")
    for item, path in items:
        messages.add(item, path)
    body: dict[str, Any] = {name: getattr(request, name) for name in SAME}
    paths = {
        "messages": "input",
        **messages.paths,
        "max_completion_tokens": "max_output_tokens",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
        "logprobs": "top_logprobs",
    }
    body["messages"] = messages.messages
    body["max_completion_tokens"] = request.max_output_tokens
    body["reasoning_effort"] = request.reasoning and request.reasoning.effort
    body["response_format"] = request.text and request.text.format
    body["stream"] = bool(request.stream)
    if request.wants_logprobs:
        body["logprobs"], body["top_logprobs"] = True, request.top_logprobs
    if toolbox.functions:
        body["tools"] = toolbox.functions
    body["tool_choice"], choice_paths = toolbox.choice(request.tool_choice)
    paths |= choice_paths
    for i, place in enumerate(toolbox.places):
        paths[f"tools.{i}"] = place
        if "function" not in toolbox.functions[i]:
            paths[f"tools.{i}.function"] = place
    if messages.is_answered:
        body["add_generation_prompt"] = True
    return body, paths


@dataclass
class _Messages:
    """The messages of a chat, from items. The items of one answer (thought, text, calls) become one message."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    paths: Paths = field(default_factory=dict)
    is_answered: bool = False  # the last message is a whole answer, to which nothing is to be added

    def add_text(self, role: str, text: str, path: str) -> None:
        self._append({"role": role, "content": text}, path)
        self.paths[f"messages.{len(self.messages) - 1}.content"] = path

    def add(self, item: Item, path: str) -> None:
        self.is_answered = False
        match item:
            case MessageItem(role="assistant"):
                message = self._answer(without=("content",))
                message["content"] = item.content
                self._map("content", f"{path}.content")
                self.is_answered = item.status == "completed"
            case MessageItem():
                self._append({"role": item.role, "content": item.content}, path)
            case ReasoningItem():
                if thought := item.thought:
                    message = self._answer(without=("content", "tool_calls"))
                    earlier = message.get("reasoning_content")
                    message["reasoning_content"] = f"{earlier}\n\n{thought}" if earlier else thought
                    self._map("reasoning_content", path)
            case FunctionCallItem() | CustomCallItem() | ClientCallItem():
                calls = self._answer().setdefault("tool_calls", [])
                self._map(f"tool_calls.{len(calls)}", path)
                self._map(f"tool_calls.{len(calls)}.function", path)
                calls.append(chat_call(item))
            case CallOutputItem():
                content = json.dumps(item.output) if isinstance(item.output, Mapping) else item.output
                call_id = item.call_id or item.id or ""
                self._append({"role": "tool", "tool_call_id": call_id, "content": content}, path)
                self._map("content", f"{path}.output")

    def _append(self, message: dict[str, Any], path: str) -> None:
        self.messages.append(message)
        self._map("", path)

    def _answer(self, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the assistant's message at the end, or a new one if there is none without these fields."""
        if not self._has("role") or self.messages[-1]["role"] != "assistant" or any(map(self._has, without)):
            self.messages.append({"role": "assistant"})
        return self.messages[-1]

    def _has(self, name: str) -> bool:
        return bool(self.messages) and name in self.messages[-1]

    def _map(self, name: str, path: str) -> None:
        self.paths[".".join(filter(None, ["messages", str(len(self.messages) - 1), name]))] = path
