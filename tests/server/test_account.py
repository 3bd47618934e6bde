"""What is written down about a request."""

from __future__ import annotations

import pytest

from pocketvlm.messages import ChatCompletionChunk, ChunkChoice, Delta, FunctionDelta, ToolCallDelta
from pocketvlm.server.request_record import RequestRecord

CALL = ToolCallDelta(index=0, id="call_1", type="function", function=FunctionDelta(name="weather"))


@pytest.mark.parametrize(
    "first", [Delta(content="a"), Delta(reasoning_content="a"), Delta(content=None, tool_calls=[CALL])]
)
def test_when_the_first_token_came(first: Delta) -> None:
    account = RequestRecord("id")
    chunks = (
        ChatCompletionChunk(id="c", created=0, model="m", choices=[ChunkChoice(index=0, delta=delta)])
        for delta in (Delta(), first, Delta())
    )
    watched = account.watch(chunks)
    next(watched)
    assert account.first_token is None
    next(watched)
    assert account.first_token is not None
