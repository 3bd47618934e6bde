"""The response of a chat: a whole completion, or the chunks of a stream."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, PrivateAttr

from pocketvlm.messages.base import Omitted
from pocketvlm.messages.regions import Region

FinishReason = Literal["stop", "length", "tool_calls"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class TopLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(_Answer):
    content: list[TokenLogprob]


class ResponseFunction(_Answer):
    """`arguments` is JSON that follows the function's parameters, unless the answer was cut short."""

    name: str
    arguments: str


class ResponseToolCall(_Answer):
    id: str
    type: Literal["function"] = "function"
    function: ResponseFunction


class ResponseMessage(_Answer):
    """`content` is None where there are tool calls. `regions` are the places in pictures that the content names."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: Omitted[str] = None
    tool_calls: Omitted[list[ResponseToolCall]] = None
    regions: Omitted[list[Region]] = None
    _text: str = PrivateAttr("")

    @property
    def text(self) -> str:
        """The text, also where it stands before tool calls; not in the JSON."""
        return self.content or self._text

    def with_text(self, text: str) -> ResponseMessage:
        self._text = text
        return self


class Choice(_Answer):
    """`stop_reason` is the stop string that ended the choice, if one did."""

    index: int
    message: ResponseMessage
    finish_reason: FinishReason
    stop_reason: Omitted[str] = None
    logprobs: ChoiceLogprobs | None = None


class PromptTokensDetails(_Answer):
    cached_tokens: int = 0
    image_tokens: int = 0


class CompletionTokensDetails(_Answer):
    """`reasoning_tokens` are those of thoughts."""

    reasoning_tokens: int = 0


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class ImageTimings(_Answer):
    """What one picture took. Sizes are [width, height] in pixels, times are in milliseconds.

    `encoded` of the `tiles` were in no cache. `cache` says where the embeddings came from: none where a tile had to be
    encoded, kv where the KV cache had the whole picture. `shrunk`: the model saw fewer pixels than the picture has.
    `high_size` is the size that the model sees with detail `high`, where that has more pixels. `pages` counts the
    pictures of its file, of which one was read. `notes` are sentences about what was read otherwise than one may
    expect. `part` is the path of the part of the messages that shows it, such as messages.0.content.1. `view` is the
    part of the picture that the model saw, [x, y, width, height] in pixels of the picture, where that is not the whole:
    less where the edges were cut off, more where bars were put around it.
    """

    original_size: tuple[int, int]
    used_size: tuple[int, int]
    tiles: int
    tokens: int
    shrunk: bool
    encoded: int
    cache: Literal["none", "disk", "memory", "kv"]
    read_ms: float
    preprocess_ms: float
    encode_ms: float
    pages: int = 1
    notes: tuple[str, ...] = ()
    high_size: Omitted[tuple[int, int]] = None
    part: str = ""
    view: Omitted[tuple[float, float, float, float]] = None


class Timings(_Answer):
    """Milliseconds of the whole request, and tokens per second of prefill (text and pictures) and decode.

    `queue_ms` is the wait for its turn, `load_ms` that for a server to load the model, apart from each other.
    `accepted_tokens` of the `drafted_tokens` became part of the answer without a step of their own.
    """

    images: list[ImageTimings] = []
    queue_ms: float = 0.0
    load_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class ChatCompletion(_Answer):
    """`not_enforced` are the paths of keywords in the request's schemas that the answer may not follow.

    `notes` are sentences about the answer, such as that the model is guessing.
    """

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[Choice]
    usage: Usage
    timings: Timings
    not_enforced: Omitted[list[str]] = None
    notes: Omitted[list[str]] = None

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].message.content or ""

    @property
    def regions(self) -> list[Region]:
        """The places in pictures that the first choice names, in the order of its text."""
        return self.choices[0].message.regions or []


class FunctionDelta(_Answer):
    name: Omitted[str] = None
    arguments: str = ""


class ToolCallDelta(_Answer):
    """A piece of the tool call number `index`. Only the first has an id, a type and a name: clients add texts up."""

    index: int
    id: Omitted[str] = None
    type: Omitted[Literal["function"]] = None
    function: FunctionDelta


class Delta(_Answer):
    """New content, which may be empty, or pieces of tool calls. Only a choice's first delta has a role.

    `regions` are those of the whole content, and come with the finish reason.
    """

    role: Omitted[Literal["assistant"]] = None
    content: Omitted[str] = ""
    reasoning_content: Omitted[str] = None
    tool_calls: Omitted[list[ToolCallDelta]] = None
    regions: Omitted[list[Region]] = None


class ChunkChoice(_Answer):
    """`stop_reason` comes with the finish reason."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    stop_reason: Omitted[str] = None
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(_Answer):
    """`not_enforced` and `notes`, as in a completion, come with the timings."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    not_enforced: Omitted[list[str]] = None
    notes: Omitted[list[str]] = None
    _prompt: Usage | None = PrivateAttr(None)

    @property
    def prompt(self) -> Usage | None:
        """The usage of the prompt, in the first chunk of a choice; not in its JSON."""
        return self._prompt

    def with_prompt(self, usage: Usage) -> ChatCompletionChunk:
        self._prompt = usage
        return self

    @property
    def text(self) -> str:
        """The new text of the first choice; empty in the last chunk."""
        return (self.choices[0].delta.content or "") if self.choices else ""


def usage_sum(one: Usage, other: Usage) -> Usage:
    """Return the usage of two runs together."""
    a, b = one.prompt_tokens_details, other.prompt_tokens_details
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
        total_tokens=one.total_tokens + other.total_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=a.cached_tokens + b.cached_tokens, image_tokens=a.image_tokens + b.image_tokens
        ),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=sum(usage.completion_tokens_details.reasoning_tokens for usage in (one, other))
        ),
    )


def timings_sum(one: Timings, other: Timings) -> Timings:
    """Return the timings of two runs, one after the other."""
    both = (one, other)
    prefill, decode = (sum(timings.prefill_ms for timings in both), sum(timings.decode_ms for timings in both))
    prefilled = sum((timings.prefill_tokens_per_second or 0) * timings.prefill_ms for timings in both)
    decoded = sum((timings.decode_tokens_per_second or 0) * timings.decode_ms for timings in both)
    return Timings(
        images=[*one.images, *other.images],
        queue_ms=max(one.queue_ms, other.queue_ms),  # each has the wait before the first run
        load_ms=max(one.load_ms, other.load_ms),
        prefill_ms=prefill,
        decode_ms=decode,
        prefill_tokens_per_second=prefilled / prefill if prefill else None,
        decode_tokens_per_second=decoded / decode if decode else None,
        drafted_tokens=one.drafted_tokens + other.drafted_tokens,
        accepted_tokens=one.accepted_tokens + other.accepted_tokens,
    )
