"""The pieces of an answer as items of a Response, and the events that a stream has for them."""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from pocketvlm.messages import ChunkChoice, TokenLogprob, ToolCallDelta
from pocketvlm.server.protocols.call_arguments import parsed_arguments
from pocketvlm.server.protocols.carried_thoughts import carry_thought
from pocketvlm.server.protocols.responses.answer import (
    ItemStatus,
    OutputItem,
    ResponseCustomCall,
    ResponseFunctionCall,
    ResponseLocalShellCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponsePatchCall,
    ResponseReasoning,
    ResponseReasoningText,
    ResponseShellCall,
    ResponseSummaryText,
)
from pocketvlm.server.protocols.responses.tools import CallableTool, Toolbox

Event = dict[str, Any]  # with its type, without its number


class Output:
    """Collects the items of one answer. `summarize` and `carry` say how its thoughts are written."""

    def __init__(self, toolbox: Toolbox, *, summarize: bool, carry: bool) -> None:
        self._toolbox = toolbox
        self._summarize = summarize
        self._carry = carry
        self._open: _OpenItem | None = None
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text is held back
        self.items: list[OutputItem] = []

    def add(self, choice: ChunkChoice) -> Iterator[Event]:
        """Yield the events of a chunk, or of a whole answer."""
        delta = choice.delta
        if delta.reasoning_content:
            yield from self._push_thought(delta.reasoning_content)
        elif choice.logprobs and not delta.tool_calls:
            self._logprobs += choice.logprobs.content
        if delta.content:
            yield from self._push_text(delta.content)
        for call in delta.tool_calls or ():
            yield from self._push_call(call)

    def end(self, *, complete: bool) -> Iterator[Event]:
        """Yield the events of the end. An answer without any text or call is an empty message."""
        if self._open is None and not self.items:
            yield from self._begin(_Message(0))
        yield from self._close("completed" if complete else "incomplete")

    def _push_thought(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, _Thought):
            yield from self._begin(_Thought(len(self.items) + bool(self._open), self._summarize, self._carry))
        assert self._open is not None
        yield from self._open.push(text)

    def _push_text(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, _Message):
            yield from self._begin(_Message(len(self.items) + bool(self._open)))
        assert isinstance(self._open, _Message)
        yield from self._open.push(text, self._logprobs)
        self._logprobs = []

    def _push_call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.id is not None:
            tool = self._toolbox.tool(call.function.name or "")
            kind = _Call if tool.kind == "function" else _WholeCall
            yield from self._begin(kind(len(self.items) + bool(self._open), tool, call.id))
        assert self._open is not None
        if call.function.arguments:
            yield from self._open.push(call.function.arguments)

    def _begin(self, item: _OpenItem) -> Iterator[Event]:
        yield from self._close("completed")
        self._open = item
        yield from item.begin()

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self.items.append(self._open.item(status))
            self._open = None


class _OpenItem(ABC):
    """An item that grows. `index` is its place in the output."""

    prefix: str

    def __init__(self, index: int) -> None:
        self._index = index
        self._id = f"{self.prefix}_{uuid.uuid4().hex}"
        self._texts: list[str] = []

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    @abstractmethod
    def item(self, status: ItemStatus) -> OutputItem: ...

    @abstractmethod
    def begin(self) -> Iterator[Event]: ...

    @abstractmethod
    def push(self, text: str) -> Iterator[Event]: ...

    @abstractmethod
    def end(self, status: ItemStatus) -> Iterator[Event]: ...

    def _item_event(self, name: str, status: ItemStatus, **changes: Any) -> Event:
        item = {**self.item(status).model_dump(mode="json"), **changes}
        return {"type": f"response.output_item.{name}", "output_index": self._index, "item": item}

    def _event(self, name: str, /, **fields: Any) -> Event:
        return {"type": f"response.{name}", "item_id": self._id, "output_index": self._index, **fields}


class _Message(_OpenItem):
    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[TokenLogprob] = []

    def item(self, status: ItemStatus) -> ResponseOutputMessage:
        part = ResponseOutputText(text=self._text, logprobs=self._logprobs)
        return ResponseOutputMessage(id=self._id, status=status, content=[part])

    def begin(self) -> Iterator[Event]:
        yield self._item_event("added", "in_progress", content=[])
        yield self._event("content_part.added", content_index=0, part=self._part())

    def push(self, text: str, logprobs: list[TokenLogprob] | None = None) -> Iterator[Event]:
        self._texts.append(text)
        self._logprobs += logprobs or ()
        written = [score.model_dump() for score in logprobs or ()]
        yield self._event("output_text.delta", content_index=0, delta=text, logprobs=written)

    def end(self, status: ItemStatus) -> Iterator[Event]:
        part = self._part()
        yield self._event("output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"])
        yield self._event("content_part.done", content_index=0, part=part)
        yield self._item_event("done", status)

    def _part(self) -> dict[str, Any]:
        return ResponseOutputText(text=self._text, logprobs=self._logprobs).model_dump(mode="json")


class _Thought(_OpenItem):
    prefix = "rs"

    def __init__(self, index: int, summarize: bool, carry: bool) -> None:
        super().__init__(index)
        self._summarize = summarize
        self._carry = carry
        self._at = {"summary_index": 0} if summarize else {"content_index": 0}
        self._part_name = "reasoning_summary_part" if summarize else "content_part"
        self._text_name = "reasoning_summary_text" if summarize else "reasoning_text"

    def item(self, status: ItemStatus) -> ResponseReasoning:
        text, summarize = self._text, self._summarize
        return ResponseReasoning(
            id=self._id,
            status=status,
            summary=[ResponseSummaryText(text=text)] if summarize else [],
            content=[] if summarize else [ResponseReasoningText(text=text)],
            encrypted_content=carry_thought(text) if self._carry and text else None,
        )

    def begin(self) -> Iterator[Event]:
        yield self._item_event("added", "in_progress", summary=[], content=[])
        yield self._event(f"{self._part_name}.added", **self._at, part=self._part())

    def push(self, text: str) -> Iterator[Event]:
        self._texts.append(text)
        yield self._event(f"{self._text_name}.delta", **self._at, delta=text)

    def end(self, status: ItemStatus) -> Iterator[Event]:
        yield self._event(f"{self._text_name}.done", **self._at, text=self._text)
        yield self._event(f"{self._part_name}.done", **self._at, part=self._part())
        yield self._item_event("done", status)

    def _part(self) -> dict[str, Any]:
        return {"type": "summary_text" if self._summarize else "reasoning_text", "text": self._text}


class _Call(_OpenItem):
    """A call of a function. Its arguments come piece by piece."""

    prefix = "fc"

    def __init__(self, index: int, tool: CallableTool, call_id: str) -> None:
        super().__init__(index)
        self._tool = tool
        self._call_id = call_id

    def item(self, status: ItemStatus) -> OutputItem:
        return ResponseFunctionCall(
            id=self._id,
            status=status,
            call_id=self._call_id,
            name=self._tool.own_name,
            namespace=self._tool.namespace,
            arguments=self._text,
        )

    def begin(self) -> Iterator[Event]:
        yield self._item_event("added", "in_progress")

    def push(self, text: str) -> Iterator[Event]:
        self._texts.append(text)
        yield self._event("function_call_arguments.delta", delta=text)

    def end(self, status: ItemStatus) -> Iterator[Event]:
        yield self._event("function_call_arguments.done", name=self._tool.own_name, arguments=self._text)
        yield self._item_event("done", status)


class _WholeCall(_Call):
    """A call whose arguments are written in another form than the model's, so that they come at the end."""

    prefix = "ctc"

    def item(self, status: ItemStatus) -> OutputItem:
        head: dict[str, Any] = {"id": self._id, "status": status, "call_id": self._call_id}
        arguments = parsed_arguments(self._text)
        match self._tool.kind:
            case "local_shell":
                return ResponseLocalShellCall(**head, action={"type": "exec", "command": [], "env": {}, **arguments})
            case "shell":
                return ResponseShellCall(**head, action={"commands": [], **arguments})
            case "apply_patch":
                return ResponsePatchCall(**head, operation=arguments)
        return ResponseCustomCall(
            **head, name=self._tool.own_name, namespace=self._tool.namespace, input=_text_of(arguments.get("input"))
        )

    def push(self, text: str) -> Iterator[Event]:
        self._texts.append(text)
        yield from ()

    def end(self, status: ItemStatus) -> Iterator[Event]:
        if isinstance(item := self.item(status), ResponseCustomCall):
            yield self._event("custom_tool_call_input.delta", delta=item.input)
            yield self._event("custom_tool_call_input.done", input=item.input)
        yield self._item_event("done", status)


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
