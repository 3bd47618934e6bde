"""POST /chat/completions: from the body to the answer or the stream, given up when the client is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import closing

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from pocketvlm.chat.completion import fold
from pocketvlm.chat.vlm import VLM
from pocketvlm.engine.interface import CancellationToken
from pocketvlm.messages import ChatCompletionChunk, ChatRequest
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.server.admission import Admission
from pocketvlm.server.body import read_object
from pocketvlm.server.http_errors import HTTPError, http_error_of, shutting_down
from pocketvlm.server.pictures import Pictures
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.server.settings import Settings
from pocketvlm.server.thread_stream import ThreadStream

ANY_MODEL = "dummy"  # what huggingface_hub sends where no model is named


class ChatEndpoint:
    """An ASGI app. While `draining`, new requests are refused and the others go on."""

    def __init__(self, vlm: VLM, settings: Settings, admission: Admission, handles: PictureHandles) -> None:
        self._handles = handles
        self._vlm = vlm
        self._settings = settings
        self._admission = admission
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.draining:
            raise shutting_down()
        settings = self._settings
        request = await read_object(
            scope, receive, ChatRequest.parse_object, max_body=settings.max_body, timeout=settings.read_timeout
        )
        if request.model not in (None, ANY_MODEL, self._vlm.info.name):
            raise unknown_model()
        reply = _Reply(send)
        account = RequestRecord.of(scope)
        account.stream = bool(request.stream)
        work = asyncio.create_task(self._answer(request, account, reply))
        gone = asyncio.create_task(_disconnect(receive))
        self._tasks.add(work)
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                account.left = True
                work.cancel()
            await work
        except asyncio.CancelledError:
            if account.left:
                raise ClientDisconnect from None
            await reply.fail(shutting_down())
        except Exception as error:  # whatever it is, the client is told
            fault = http_error_of(error)
            account.code = fault.code
            await reply.fail(fault)
        finally:
            gone.cancel()
            work.cancel()
            self._tasks.discard(work)

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def abort(self) -> None:
        """End all that runs or waits, with an error."""
        for task in self._tasks:
            task.cancel()

    async def _answer(self, request: ChatRequest, account: RequestRecord, reply: _Reply) -> None:
        asked = time.perf_counter()
        await self._admission.enter()
        entered = time.perf_counter()
        cancellation = CancellationToken()

        def work(put: Callable[[bytes], None]) -> Generator[bytes, None, None]:
            def encoding(done: int, total: int) -> None:
                if request.stream:
                    put(b": encoding %d/%d\n\n" % (done, total))  # a comment: every client passes over it

            pictures, waited = Pictures(self._settings, self._handles), 1000 * (entered - asked)
            chunks = self._vlm.run(
                request,
                progress=encoding,
                read=pictures.read,
                cancellation=cancellation,
                queue_ms=waited,
                buffered=not request.stream,
            )
            with closing(account.watch(chunks)) as watched:
                yield from _events(watched, request) if request.stream else _whole(watched, request)

        def ended() -> None:  # the client may still be reading
            self._admission.leave(time.perf_counter() - entered)

        try:
            pump = ThreadStream(work, stop=cancellation.stop, ended=ended)
        except BaseException:  # no thread was to be had
            ended()
            raise
        try:
            while batch := await pump.fetch():
                await reply.send(b"".join(batch), stream=bool(request.stream))
            await reply.end()
        finally:
            await pump.cancel()


def unknown_model() -> HTTPError:
    return HTTPError(404, "no such model here; GET /v1/models lists what is", "model", "model_not_found")


def _whole(chunks: Generator[ChatCompletionChunk, None, None], request: ChatRequest) -> Generator[bytes, None, None]:
    yield fold(chunks, request).model_dump_json().encode()


def _events(chunks: Generator[ChatCompletionChunk, None, None], request: ChatRequest) -> Generator[bytes, None, None]:
    """Server-sent events. `usage` stands in every chunk, as null, where it was asked for, and in none otherwise."""
    for chunk in chunks:
        if chunk.choices or request.wants_usage:
            hidden = {"usage"} if not request.wants_usage else set()
            if chunk.timings is None:
                hidden.add("timings")
            yield _event(chunk.model_dump_json(exclude=hidden).encode())
    yield _event(b"[DONE]")


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class _Reply:
    """An answer under way: its head goes out with the first bytes, so that until then a fault has its own status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started: bool | None = None  # as a stream or not; None before

    async def send(self, data: bytes, *, stream: bool) -> None:
        if self._started is None:
            self._started = stream
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
            if stream:
                kind = b"text/event-stream; charset=utf-8"
                headers = [(b"content-type", kind), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, fault: HTTPError) -> None:
        """In a stream as its last event, which OpenAI's clients raise as an error."""
        if self._started is None:
            raise fault
        if self._started:
            await self._send({"type": "http.response.body", "body": _event(fault.json()), "more_body": True})
        await self.end()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
