"""Answers of Anthropic's Messages API: a message, or the events of a stream that make one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pocketvlm.messages import ChatCompletion, ChatCompletionChunk, Choice, ChunkChoice, Delta, Timings
from pocketvlm.messages import Usage as ChatUsage
from pocketvlm.messages.base import Omitted
from pocketvlm.server.protocols.call_arguments import parsed_arguments
from pocketvlm.server.protocols.carried_thoughts import carry_thought

_SIGNATURE = "pocketvlm"  # not checked, but clients drop thoughts without one from the history
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class TextContent(_Answer):
    type: Literal["text"] = "text"
    text: str


class ThinkingContent(_Answer):
    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str


class ToolUseContent(_Answer):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


Content = TextContent | ThinkingContent | ToolUseContent


class OutputDetails(_Answer):
    thinking_tokens: int


class MessageUsage(_Answer):
    """`input_tokens` are those of the prompt that were not in the KV cache, `cache_read_input_tokens` the others."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens_details: OutputDetails

    @classmethod
    def of(cls, usage: ChatUsage) -> MessageUsage:
        cached = usage.prompt_tokens_details.cached_tokens
        return cls(
            input_tokens=usage.prompt_tokens - cached,
            output_tokens=usage.completion_tokens,
            cache_read_input_tokens=cached,
            output_tokens_details=OutputDetails(thinking_tokens=usage.completion_tokens_details.reasoning_tokens),
        )


class MessageAnswer(_Answer):
    """`timings`, `not_enforced` and `notes` are those of a chat completion."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Content]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    timings: Omitted[Timings] = None
    not_enforced: Omitted[list[str]] = None
    notes: Omitted[list[str]] = None


# ---- events


class MessageStart(_Answer):
    type: Literal["message_start"] = "message_start"
    message: MessageAnswer


class BlockStart(_Answer):
    type: Literal["content_block_start"] = "content_block_start"
    index: int
    content_block: Content


class TextDelta(_Answer):
    type: Literal["text_delta"] = "text_delta"
    text: str


class ThinkingDelta(_Answer):
    type: Literal["thinking_delta"] = "thinking_delta"
    thinking: str


class SignatureDelta(_Answer):
    type: Literal["signature_delta"] = "signature_delta"
    signature: str


class InputDelta(_Answer):
    type: Literal["input_json_delta"] = "input_json_delta"
    partial_json: str


class BlockDelta(_Answer):
    type: Literal["content_block_delta"] = "content_block_delta"
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(_Answer):
    type: Literal["content_block_stop"] = "content_block_stop"
    index: int


class StopDelta(_Answer):
    stop_reason: StopReason
    stop_sequence: str | None

    @classmethod
    def of(cls, choice: Choice | ChunkChoice, usage: MessageUsage, limit: int | None) -> StopDelta:
        """`limit` is the request's own: without one, or below it, the context was full."""
        reason: StopReason = "end_turn" if choice.stop_reason is None else "stop_sequence"
        if choice.finish_reason == "tool_calls":
            reason = "tool_use"
        elif choice.finish_reason == "length":
            reached = limit is not None and usage.output_tokens >= limit
            reason = "max_tokens" if reached else "model_context_window_exceeded"
        return cls(stop_reason=reason, stop_sequence=choice.stop_reason)


class MessageDelta(_Answer):
    type: Literal["message_delta"] = "message_delta"
    delta: StopDelta
    usage: MessageUsage
    timings: Omitted[Timings] = None
    not_enforced: Omitted[list[str]] = None
    notes: Omitted[list[str]] = None


class MessageStop(_Answer):
    type: Literal["message_stop"] = "message_stop"


class Ping(_Answer):
    type: Literal["ping"] = "ping"


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class MessageEvents:
    """Turns the chunks of an answer into events. `hides_thoughts`: the text of thoughts is in their signature only.

    `limit` is the request's own, in tokens.
    """

    def __init__(self, *, limit: int | None, hides_thoughts: bool) -> None:
        self._limit = limit
        self._hides_thoughts = hides_thoughts
        self._index = -1  # of the last block
        self._open: Literal["text", "thinking", "tool_use"] | None = None
        self._last: ChunkChoice | None = None
        self._hidden = ""  # text of the open thought

    def of(self, chunks: Iterable[ChatCompletionChunk]) -> Iterator[Event]:
        for chunk in chunks:
            if chunk.prompt is not None:
                yield MessageStart(message=_message(chunk, [], None, MessageUsage.of(chunk.prompt)))
            for choice in chunk.choices:
                yield from self._content(choice.delta)
                if choice.finish_reason:
                    self._last = choice
                    yield from self._close()
            if chunk.usage is not None and self._last is not None:
                usage = MessageUsage.of(chunk.usage)
                delta = StopDelta.of(self._last, usage, self._limit)
                yield MessageDelta(delta=delta, usage=usage, **_extensions(chunk))
                yield MessageStop()

    def _content(self, delta: Delta) -> Iterator[Event]:
        if delta.reasoning_content:
            if self._open != "thinking":
                yield from self._begin(ThinkingContent(thinking="", signature=""))
            if self._hides_thoughts:
                self._hidden += delta.reasoning_content
            else:
                yield self._delta(ThinkingDelta(thinking=delta.reasoning_content))
        if delta.content:
            if self._open != "text":
                yield from self._begin(TextContent(text=""))
            yield self._delta(TextDelta(text=delta.content))
        for call in delta.tool_calls or ():
            if call.id is not None:
                yield from self._begin(ToolUseContent(id=_use_id(call.id), name=call.function.name or "", input={}))
            if call.function.arguments:
                yield self._delta(InputDelta(partial_json=call.function.arguments))

    def _begin(self, block: Content) -> Iterator[Event]:
        yield from self._close()
        self._index += 1
        self._open = block.type
        yield BlockStart(index=self._index, content_block=block)

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._delta(SignatureDelta(signature=_signature(self._hidden)))
            self._hidden = ""
        self._open = None
        yield BlockStop(index=self._index)

    def _delta(self, delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta) -> BlockDelta:
        return BlockDelta(index=self._index, delta=delta)


def message_of(completion: ChatCompletion, *, limit: int | None, hides_thoughts: bool) -> MessageAnswer:
    """Return a whole answer, as `MessageEvents` streams it."""
    choice = completion.choices[0]
    content: list[Content] = []
    if thought := choice.message.reasoning_content:
        shown, hidden = ("", thought) if hides_thoughts else (thought, "")
        content.append(ThinkingContent(thinking=shown, signature=_signature(hidden)))
    if choice.message.text:
        content.append(TextContent(text=choice.message.text))
    for call in choice.message.tool_calls or ():
        arguments = parsed_arguments(call.function.arguments)
        content.append(ToolUseContent(id=_use_id(call.id), name=call.function.name, input=arguments))
    usage = MessageUsage.of(completion.usage)
    stop = StopDelta.of(choice, usage, limit)
    message = _message(completion, content, stop, usage)
    return message.model_copy(update=_extensions(completion))


def _extensions(answer: ChatCompletion | ChatCompletionChunk) -> dict[str, Any]:
    return {"timings": answer.timings, "not_enforced": answer.not_enforced, "notes": answer.notes}


def _message(
    answer: ChatCompletion | ChatCompletionChunk, content: list[Content], stop: StopDelta | None, usage: MessageUsage
) -> MessageAnswer:
    return MessageAnswer(
        id="msg_" + answer.id.removeprefix("chatcmpl-"),
        model=answer.model,
        content=content,
        stop_reason=None if stop is None else stop.stop_reason,
        stop_sequence=None if stop is None else stop.stop_sequence,
        usage=usage,
    )


def _signature(hidden: str) -> str:
    return carry_thought(hidden) if hidden else _SIGNATURE


def _use_id(call_id: str) -> str:
    return "toolu_" + call_id.removeprefix("call_")
