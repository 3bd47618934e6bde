"""The record of one request for the log and the metrics: counts and times, no content."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field

from starlette.types import Scope

from pocketvlm.messages import ChatCompletionChunk, Timings, Usage

_KEY = "pocketvlm.request_record"


@dataclass
class RequestRecord:
    """Times are seconds of `time.perf_counter`. `code` is that of the error, if the request failed."""

    request_id: str
    began: float = field(default_factory=time.perf_counter)
    status: int | None = None
    code: str | None = None
    stream: bool | None = None
    model: str | None = None
    left: bool = False  # the client left before the end
    first_token: float | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None

    @classmethod
    def of(cls, scope: Scope) -> RequestRecord:
        record: RequestRecord = scope[_KEY]
        return record

    def open(self, scope: Scope) -> None:
        scope[_KEY] = self

    def note(self, usage: Usage, timings: Timings) -> None:
        """Record an answer that has no chunks."""
        self.usage, self.timings = usage, timings
        self.finish_reason = "stop"

    def watch(self, chunks: Generator[ChatCompletionChunk, None, None]) -> Generator[ChatCompletionChunk, None, None]:
        """Yield the chunks unchanged while recording what they say."""
        for chunk in chunks:
            for choice in chunk.choices:
                has_output = choice.delta.content or choice.delta.reasoning_content or choice.delta.tool_calls
                if self.first_token is None and (has_output or choice.finish_reason):
                    self.first_token = time.perf_counter() - self.began
                self.finish_reason = choice.finish_reason or self.finish_reason
            self.usage = chunk.usage or self.usage
            self.timings = chunk.timings or self.timings
            yield chunk
