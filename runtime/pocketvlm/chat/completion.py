"""Events to chunks, and chunks to a completion. Pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from pocketvlm.engine.interface import EngineInfo, PrefillDone, TokenScore
from pocketvlm.messages import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    FinishReason,
    FunctionDelta,
    PromptTokensDetails,
    ResponseFunction,
    ResponseMessage,
    ResponseToolCall,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from pocketvlm.structured.output_parser import OutputPiece


class Answer:
    """What all chunks of one request share, and what is counted on the way."""

    def __init__(self, info: EngineInfo, queue_ms: float) -> None:
        self._info = info
        self._queue_ms = queue_ms
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self.started: list[PrefillDone] = []
        self.tokens = 0
        self.steps = 0  # tokens but the first of each answer, which comes with its prompt
        self.drafted = self.accepted = 0
        self.decode_ms = 0.0

    def chunk(
        self, choices: list[ChunkChoice], usage: Usage | None = None, timings: Timings | None = None
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._info.name,
            system_fingerprint=self._info.fingerprint,
            choices=choices,
            usage=usage,
            timings=timings,
        )

    def usage(self) -> Usage:
        first = self.started[0]
        return Usage(
            prompt_tokens=first.prompt_tokens,
            completion_tokens=self.tokens,
            total_tokens=first.prompt_tokens + self.tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=first.cached_tokens, image_tokens=sum(image.tokens for image in first.images)
            ),
        )

    def timings(self) -> Timings:
        first = self.started[0]
        prefill_ms = sum(started.prefill_ms for started in self.started)
        fresh = sum(started.prompt_tokens - started.cached_tokens for started in self.started)
        return Timings(
            images=list(first.images),
            queue_ms=self._queue_ms + sum(started.queue_ms for started in self.started),
            prefill_ms=prefill_ms,
            decode_ms=self.decode_ms,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            prefill_tokens_per_second=1000 * fresh / prefill_ms if prefill_ms else None,
            decode_tokens_per_second=1000 * self.steps / self.decode_ms if self.steps and self.decode_ms else None,
        )


def logprobs(data: bytes, score: TokenScore) -> ChoiceLogprobs:
    """Of one token."""

    def entry(raw: bytes) -> dict[str, Any]:
        return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw)}

    top = [TopLogprob(**entry(raw), logprob=logprob) for _, raw, logprob in score.top]
    return ChoiceLogprobs(content=[TokenLogprob(**entry(data), logprob=score.logprob, top_logprobs=top)])


def delta(piece: OutputPiece) -> Delta:
    """Of a piece of an answer."""
    if piece.kind == "content":
        return Delta(content=piece.text)
    if piece.kind == "reasoning":
        return Delta(reasoning_content=piece.text)
    if piece.kind == "call":
        first = FunctionDelta(name=piece.text)
        call = ToolCallDelta(index=piece.index, id=f"call_{uuid.uuid4().hex[:24]}", function=first)
    else:
        call = ToolCallDelta(index=piece.index, function=FunctionDelta(arguments=piece.text))
    return Delta(content=None, tool_calls=[call])


def _whole(parts: Iterable[ToolCallDelta]) -> list[ResponseToolCall]:
    found: list[ResponseToolCall] = []
    for index, group in groupby(parts, key=lambda part: part.index):
        of_one = list(group)
        arguments = "".join(part.function.arguments for part in of_one)
        function = ResponseFunction(name=of_one[0].function.name or "", arguments=arguments)
        assert index == len(found)
        found.append(ResponseToolCall(id=of_one[0].id, function=function))
    return found


def fold(chunks: Iterable[ChatCompletionChunk], request: ChatRequest) -> ChatCompletion:
    """The chunks of `VLM.run` as one answer."""
    n = request.n or 1
    texts: list[list[str]] = [[] for _ in range(n)]
    thoughts: list[list[str]] = [[] for _ in range(n)]
    calls: list[list[ToolCallDelta]] = [[] for _ in range(n)]
    reasons: list[FinishReason] = ["stop"] * n
    scores: list[list[TokenLogprob]] = [[] for _ in range(n)]
    chunk: ChatCompletionChunk | None = None
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index].append(choice.delta.content or "")
            thoughts[choice.index].append(choice.delta.reasoning_content or "")
            calls[choice.index] += choice.delta.tool_calls or ()
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            if choice.logprobs:
                scores[choice.index].extend(choice.logprobs.content)
    assert chunk is not None and chunk.usage is not None and chunk.timings is not None
    return ChatCompletion(
        id=chunk.id,
        created=chunk.created,
        model=chunk.model,
        system_fingerprint=chunk.system_fingerprint,
        choices=[
            Choice(
                index=i,
                message=ResponseMessage(
                    content=None if calls[i] else "".join(texts[i]),
                    reasoning_content="".join(thoughts[i]) or None,
                    tool_calls=_whole(calls[i]) or None,
                ),
                finish_reason=reasons[i],
                logprobs=ChoiceLogprobs(content=scores[i]) if scores[i] else None,
            )
            for i in range(n)
        ],
        usage=chunk.usage,
        timings=chunk.timings,
    )
