"""Anthropic's Messages API: one request, and its answer."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from pocketvlm.engine.interface import TokenCount
from pocketvlm.messages import ChatCompletion, ChatCompletionChunk
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.operation import Component, Operation, Stream
from pocketvlm.server.protocols.anthropic.answer import (
    BlockDelta,
    BlockStart,
    BlockStop,
    MessageAnswer,
    MessageDelta,
    MessageEvents,
    MessageStart,
    MessageStop,
    Ping,
    message_of,
)
from pocketvlm.server.protocols.anthropic.request import MessagesBody
from pocketvlm.server.protocols.anthropic.translate import translated
from pocketvlm.server.protocols.error_forms import ANTHROPIC_ERROR, anthropic_error
from pocketvlm.server.protocols.exchange import Chunks, Exchange, event

A = TypeVar("A", ChatCompletion, ChatCompletionChunk)
_COUNT = Component(
    "MessageTokensCount",
    {"type": "object", "required": ["input_tokens"], "properties": {"input_tokens": {"type": "integer"}}},
)
_EVENTS = (MessageStart, BlockStart, BlockDelta, BlockStop, MessageDelta, MessageStop, Ping, ANTHROPIC_ERROR)
OPERATIONS = (
    Operation(
        method="post",
        path="/messages",
        name="createMessage",
        summary="Anthropic's Messages API. With stream: true, the answer comes as its typed events.",
        request=MessagesBody,
        answer=MessageAnswer,
        stream=Stream(_EVENTS, named=True),
        error=ANTHROPIC_ERROR,
        success="The message.",
    ),
    Operation(
        method="post",
        path="/messages/count_tokens",
        name="countMessageTokens",
        summary="Count the tokens of a message's prompt, pictures included. Nothing is encoded or evaluated.",
        request=MessagesBody,
        answer=_COUNT,
        error=ANTHROPIC_ERROR,
        success="The count.",
    ),
)


class Messages(Exchange):
    def __init__(self, body: MessagesBody) -> None:
        request, paths = translated(body)
        super().__init__(request, stream=bool(body.stream), paths=paths)
        self._hides_thoughts = body.thinking is not None and body.thinking.display == "omitted"

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Messages:
        """Raises RequestError with the path of the wrong field."""
        return cls(MessagesBody.of(body))

    def whole(self, completion: ChatCompletion) -> bytes:
        message = message_of(
            self._with_sent_paths(completion), limit=self.request.limit, hides_thoughts=self._hides_thoughts
        )
        return message.model_dump_json().encode()

    def events(self, chunks: Chunks) -> Generator[bytes, None, None]:
        writer = MessageEvents(limit=self.request.limit, hides_thoughts=self._hides_thoughts)
        for one in writer.of(map(self._with_sent_paths, chunks)):
            yield event(one.model_dump_json().encode(), one.type)

    def failure(self, error: HTTPError) -> bytes:
        return event(json.dumps(anthropic_error(error)).encode(), "error")

    def counted(self, count: TokenCount) -> bytes:
        return json.dumps({"input_tokens": count.total}).encode()

    def waiting(self, state: str) -> bytes:
        """Return a ping, which Anthropic's clients expect, and the state as a comment."""
        return f": {state}\n".encode() + event(b'{"type": "ping"}', "ping")

    def _with_sent_paths(self, answer: A) -> A:
        """Return an answer that names what of the client's schemas it may not follow by the client's own paths."""
        if answer.not_enforced is None:
            return answer
        return answer.model_copy(update={"not_enforced": [self.sent_path(path) for path in answer.not_enforced]})
