"""A stream is never silent for long: not in the queue, not while the prompt is evaluated."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from pocketvlm import VLM
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.server import endpoint
from pocketvlm.server.endpoint import Answers, Parse
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.protocols.chat_completions import ChatCompletions
from pocketvlm.server.protocols.exchange import Chunks
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.server.settings import Settings
from server.conftest import served

LONG = "one two three " * 600  # takes many times EVERY to evaluate
EVERY = 0.02
QUEUED, WORKING = b": queued\n\n", b": working\n\n"


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.load(context_size=4096) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "HEAD_AFTER", EVERY)
    monkeypatch.setattr(endpoint, "SILENCE", EVERY)


class Client:
    """Calls the endpoint as a web server would."""

    def __init__(self, vlm: VLM, parse: Parse = ChatCompletions.parse) -> None:
        settings = Settings(slots=1, queue=1)
        models = served(vlm, settings)
        self.admission = models.first.admission
        self._endpoint = Answers(models, settings, PictureHandles()).endpoint(parse)
        self.status: int | None = None
        self.received: list[bytes] = []

    async def post(self, **body: Any) -> None:
        requests = iter([{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}])

        async def receive() -> Any:
            return next(requests, None) or await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            elif message["body"]:
                self.received.append(message["body"])

        scope: dict[str, Any] = {"type": "http", "headers": []}
        RequestRecord("id").open(scope)
        await self._endpoint(scope, receive, send)


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_comments_while_it_waits_for_others(vlm: VLM) -> None:
    async def run() -> Client:
        client = Client(vlm)
        await client.admission.enter()
        asking = asyncio.create_task(client.post(messages=user("hi"), stream=True))
        while len(client.received) < 3:
            await asyncio.sleep(0.01)
        client.admission.leave(0.0)
        await asking
        return client

    client = asyncio.run(run())
    assert client.status == 200
    assert client.received[:3] == [QUEUED] * 3
    assert client.received[-1].endswith(b"data: [DONE]\n\n")
    first_data = next(data for data in client.received if data.startswith(b"data: "))
    assert json.loads(first_data.split(b"\n")[0][6:])["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_comments_while_the_prompt_is_evaluated(vlm: VLM) -> None:
    client = Client(vlm)
    asyncio.run(client.post(messages=user(LONG), stream=True, max_tokens=1))
    first = client.received.index(WORKING)  # on a busy machine it may have been queued for a moment
    assert client.received.count(WORKING) > 3
    assert QUEUED not in client.received[first:]


class Withholding(ChatCompletions):
    """Has nothing to send for a while, as an API whose tool calls come whole."""

    def events(self, chunks: Chunks) -> Generator[bytes, None, None]:
        for _ in range(40):
            time.sleep(EVERY / 4)
            yield b""
        yield from super().events(chunks)


def test_empty_pieces_do_not_break_the_silence(vlm: VLM) -> None:
    client = Client(vlm, Withholding.parse)
    asyncio.run(client.post(messages=user("hi"), stream=True, max_tokens=1))
    first_data = next(i for i, data in enumerate(client.received) if data.startswith(b"data: "))
    assert client.received[:first_data].count(WORKING) > 3


def test_an_answer_in_one_piece_has_none(vlm: VLM) -> None:
    client = Client(vlm)
    asyncio.run(client.post(messages=user(LONG), max_tokens=1))
    assert [json.loads(data)["object"] for data in client.received] == ["chat.completion"]


@pytest.mark.parametrize("waits", [False, True])
def test_an_error_after_comments_is_an_event(vlm: VLM, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes in time has its own status."""

    async def run() -> Client:
        client = Client(vlm)
        if waits:
            await client.admission.enter()
        look = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        asking = asyncio.create_task(client.post(messages=[{"role": "user", "content": [look]}], stream=True))
        while waits and not client.received:
            await asyncio.sleep(0.01)
        client.admission.leave(0.0)
        await asking
        return client

    if not waits:
        monkeypatch.setattr(endpoint, "HEAD_AFTER", 60.0)  # it comes in time on a busy machine, too
        with pytest.raises(HTTPError, match="400 invalid_image_format"):
            asyncio.run(run())
        return
    client = asyncio.run(run())
    assert client.status == 200
    event = json.loads(client.received[-1].removeprefix(b"data: "))
    assert event["error"]["code"] == "invalid_image_format"
