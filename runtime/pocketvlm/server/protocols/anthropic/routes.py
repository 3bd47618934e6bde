"""The routes of Anthropic's Messages API, and how the OpenAPI document describes them."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.routing import Route

from pocketvlm.server.endpoint import Answers
from pocketvlm.server.operation import Component, Operation, Stream
from pocketvlm.server.protocols.anthropic.answer import (
    BlockDelta,
    BlockStart,
    BlockStop,
    MessageAnswer,
    MessageDelta,
    MessageStart,
    MessageStop,
    Ping,
)
from pocketvlm.server.protocols.anthropic.exchange import Messages
from pocketvlm.server.protocols.anthropic.request import MessagesBody
from pocketvlm.server.protocols.error_forms import ANTHROPIC_ERROR

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


def routes(answers: Answers) -> Iterator[Route]:
    for prefix in ("/v1", ""):
        yield Route(f"{prefix}/messages", answers.endpoint(Messages.parse), methods=["POST"])
        yield Route(f"{prefix}/messages/count_tokens", answers.counter(Messages.parse), methods=["POST"])
