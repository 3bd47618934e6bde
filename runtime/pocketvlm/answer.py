"""Events to chunks, and chunks to a completion. Pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

from pocketvlm.engine.engine import EngineInfo, Score, Started
from pocketvlm.messages import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    FinishReason,
    ImageTimings,
    PromptTokensDetails,
    ResponseMessage,
    Timings,
    TokenLogprob,
    TopLogprob,
    Usage,
)


class Answer:
    """What all chunks of one request share, and what is counted on the way."""

    def __init__(self, info: EngineInfo, queue_ms: float) -> None:
        self._info = info
        self._queue_ms = queue_ms
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self.started: list[Started] = []
        self.tokens = 0
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
        fresh = first.prompt_tokens - first.cached_tokens
        return Timings(
            images=[
                ImageTimings(
                    original_size=image.original,
                    used_size=image.used,
                    tiles=image.tiles,
                    tokens=image.tokens,
                    shrunk=image.shrunk,
                    cache="kv" if image.cached else "none",
                    read_ms=image.read_ms,
                    preprocess_ms=image.preprocess_ms,
                    encode_ms=image.encode_ms,
                )
                for image in first.images
            ],
            queue_ms=self._queue_ms,
            prefill_ms=first.prefill_ms,
            decode_ms=self.decode_ms,
            prefill_tokens_per_second=1000 * fresh / first.prefill_ms if first.prefill_ms else None,
            decode_tokens_per_second=1000 * self.tokens / self.decode_ms if self.decode_ms else None,
        )


def logprobs(data: bytes, score: Score) -> ChoiceLogprobs:
    """Of one token."""

    def entry(raw: bytes) -> dict[str, Any]:
        return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw)}

    top = [TopLogprob(**entry(raw), logprob=logprob) for _, raw, logprob in score.top]
    return ChoiceLogprobs(content=[TokenLogprob(**entry(data), logprob=score.logprob, top_logprobs=top)])


def fold(chunks: Iterable[ChatCompletionChunk], request: ChatRequest) -> ChatCompletion:
    """The chunks of `VLM.run` as one answer."""
    n = request.n or 1
    texts: list[list[str]] = [[] for _ in range(n)]
    reasons: list[FinishReason] = ["stop"] * n
    scores: list[list[TokenLogprob]] = [[] for _ in range(n)]
    chunk: ChatCompletionChunk | None = None
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index].append(choice.delta.content)
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
                message=ResponseMessage(content="".join(texts[i])),
                finish_reason=reasons[i],
                logprobs=ChoiceLogprobs(content=scores[i]) if scores[i] else None,
            )
            for i in range(n)
        ],
        usage=chunk.usage,
        timings=chunk.timings,
    )
