"""What is remembered of one request, for the log and the metrics: counts and times, nothing of its content."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass, field

from starlette.types import Scope

from pocketvlm.messages import ChatCompletionChunk, Timings, Usage

_KEY = "pocketvlm.account"


@dataclass
class RequestRecord:
    """Times in seconds on `time.perf_counter`. `code` is the error's, of an answer that failed."""

    request_id: str
    began: float = field(default_factory=time.perf_counter)
    status: int | None = None
    code: str | None = None
    stream: bool | None = None
    left: bool = False  # the client went away before the end
    first_token: float | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None

    @classmethod
    def of(cls, scope: Scope) -> RequestRecord:
        account: RequestRecord = scope[_KEY]
        return account

    def open(self, scope: Scope) -> None:
        scope[_KEY] = self

    def watch(self, chunks: Generator[ChatCompletionChunk, None, None]) -> Generator[ChatCompletionChunk, None, None]:
        """The chunks, as they are."""
        for chunk in chunks:
            for choice in chunk.choices:
                told = choice.delta.content or choice.delta.reasoning_content or choice.delta.tool_calls
                if self.first_token is None and (told or choice.finish_reason):
                    self.first_token = time.perf_counter() - self.began
                self.finish_reason = choice.finish_reason or self.finish_reason
            self.usage = chunk.usage or self.usage
            self.timings = chunk.timings or self.timings
            yield chunk
