"""OpenAI's chat completions: the project's own schema, so nothing is translated."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from pocketvlm.messages import ChatCompletion, ChatCompletionChunk, ChatRequest
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.operation import Component, Operation, Stream
from pocketvlm.server.protocols.error_forms import OPENAI_ERROR
from pocketvlm.server.protocols.exchange import Exchange, event

INPUT_TOKENS = Component(
    "InputTokens",
    {
        "type": "object",
        "required": ["object", "input_tokens"],
        "properties": {
            "object": {"const": "response.input_tokens"},
            "input_tokens": {"type": "integer", "minimum": 1},
        },
    },
)
OPERATIONS = (
    Operation(
        method="post",
        path="/chat/completions",
        name="createChatCompletion",
        summary="Answer a chat. With stream: true, as server-sent events that end with [DONE].",
        request=ChatRequest,
        answer=ChatCompletion,
        stream=Stream((ChatCompletionChunk, OPENAI_ERROR), end="[DONE]"),
        error=OPENAI_ERROR,
        success="The answer.",
    ),
    Operation(
        method="post",
        path="/chat/completions/input_tokens",
        name="countChatCompletionTokens",
        summary="Count the tokens of a chat's prompt, pictures included. Nothing is encoded or evaluated.",
        request=ChatRequest,
        answer=INPUT_TOKENS,
        error=OPENAI_ERROR,
        success="The count.",
    ),
)


class ChatCompletions(Exchange):
    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> ChatCompletions:
        """Raises RequestError with the path of the wrong field."""
        request = ChatRequest.parse_object(body)
        return cls(request, stream=bool(request.stream))

    def whole(self, completion: ChatCompletion) -> bytes:
        return completion.model_dump_json().encode()

    def events(self, chunks: Generator[ChatCompletionChunk, None, None]) -> Generator[bytes, None, None]:
        """Yield an event for each chunk. `usage` is in each, mostly null, if the request wants it; else in none."""
        wants_usage = self.request.wants_usage
        for chunk in chunks:
            if chunk.choices or wants_usage:
                hidden = {"usage"} if not wants_usage else set()
                if chunk.timings is None:
                    hidden.add("timings")
                yield event(chunk.model_dump_json(exclude=hidden).encode())
        yield event(b"[DONE]")

    def failure(self, error: HTTPError) -> bytes:
        """Return an error event, which OpenAI's clients raise."""
        return event(error.json())
