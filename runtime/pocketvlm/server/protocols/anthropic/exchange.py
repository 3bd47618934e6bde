"""Anthropic's Messages API: one request, and its answer."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any

from pocketvlm.engine.interface import TokenCount
from pocketvlm.messages import ChatCompletion
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.protocols.anthropic.answer import (
    MessageEvents,
    message_of,
)
from pocketvlm.server.protocols.anthropic.request import MessagesBody
from pocketvlm.server.protocols.anthropic.translate import translated
from pocketvlm.server.protocols.error_forms import anthropic_error
from pocketvlm.server.protocols.exchange import Chunks, Exchange, event


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
        message = message_of(completion, limit=self.request.limit, hides_thoughts=self._hides_thoughts)
        return message.model_dump_json().encode()

    def events(self, chunks: Chunks) -> Generator[bytes, None, None]:
        writer = MessageEvents(limit=self.request.limit, hides_thoughts=self._hides_thoughts)
        for one in writer.of(chunks):
            yield event(one.model_dump_json().encode(), one.type)

    def failure(self, error: HTTPError) -> bytes:
        return event(json.dumps(anthropic_error(error)).encode(), "error")

    def counted(self, count: TokenCount) -> bytes:
        return json.dumps({"input_tokens": count.total}).encode()

    def waiting(self, state: str) -> bytes:
        """Return a ping, which Anthropic's clients expect, and the state as a comment."""
        return f": {state}\n".encode() + event(b'{"type": "ping"}', "ping")
