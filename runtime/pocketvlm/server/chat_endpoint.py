"""POST /chat/completions: from the body to the answer or stream. A client that leaves cancels its request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
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

HEAD_AFTER = 2.0  # seconds without an answer, after which a stream begins; until then an error has its own status
COMMENT_EVERY = 3.0  # seconds of silence in a stream: clients and proxies give up after five or more
_NO_MODEL = (None, "", "dummy")  # huggingface_hub sends the last where the caller names no model


class ChatEndpoint:
    """An ASGI app. While `draining`, it refuses new requests and finishes the others."""

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
        if settings.strict_model and request.model not in (*_NO_MODEL, self._vlm.info.name):
            raise unknown_model([self._vlm.info.name])
        reply = _Reply(send)
        record = RequestRecord.of(scope)
        record.stream = bool(request.stream)
        work = asyncio.create_task(self._answer(request, record, reply))
        disconnect = asyncio.create_task(_disconnect(receive))
        comments = asyncio.create_task(reply.break_silence() if request.stream else asyncio.sleep(0))
        self._tasks.add(work)
        try:
            await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            comments.cancel()
            if not work.done():
                record.left = True
                work.cancel()
            await work
        except asyncio.CancelledError:
            if record.left:
                raise ClientDisconnect from None
            await reply.fail(shutting_down())
        except Exception as error:  # any error becomes a response
            http_error = http_error_of(error)
            record.code = http_error.code
            await reply.fail(http_error)
        finally:
            disconnect.cancel()
            comments.cancel()
            work.cancel()
            self._tasks.discard(work)

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def abort(self) -> None:
        """End all running and waiting requests with an error."""
        for task in self._tasks:
            task.cancel()

    async def _answer(self, request: ChatRequest, record: RequestRecord, reply: _Reply) -> None:
        arrived = time.perf_counter()
        await self._admission.enter()
        reply.comment = b": working\n\n"
        entered = time.perf_counter()
        cancellation = CancellationToken()

        def work(put: Callable[[bytes], None]) -> Generator[bytes, None, None]:
            def report_progress(done: int, total: int) -> None:
                if request.stream:
                    put(b": encoding %d/%d\n\n" % (done, total))  # clients skip comments

            pictures, queue_ms = Pictures(self._settings, self._handles), 1000 * (entered - arrived)
            chunks = self._vlm.run(
                request,
                progress=report_progress,
                read=pictures.read,
                cancellation=cancellation,
                queue_ms=queue_ms,
                buffered=not request.stream,
            )
            with closing(record.watch(chunks)) as recorded:
                yield from _events(recorded, request) if request.stream else _completion(recorded, request)

        def on_end() -> None:  # frees the slot while the client may still be reading
            self._admission.leave(time.perf_counter() - entered)

        try:
            stream = ThreadStream(work, stop=cancellation.stop, ended=on_end)
        except BaseException:  # the system gave no thread
            on_end()
            raise
        try:
            while batch := await stream.fetch():
                await reply.send(b"".join(batch), stream=bool(request.stream))
            await reply.end()
        finally:
            await stream.cancel()


def unknown_model(served: Sequence[str]) -> HTTPError:
    return HTTPError(404, f"model: there is no such model here; use {' or '.join(served)}", "model", "model_not_found")


def _completion(
    chunks: Generator[ChatCompletionChunk, None, None], request: ChatRequest
) -> Generator[bytes, None, None]:
    yield fold(chunks, request).model_dump_json().encode()


def _events(chunks: Generator[ChatCompletionChunk, None, None], request: ChatRequest) -> Generator[bytes, None, None]:
    """Yield server-sent events. `usage` is in every chunk, mostly null, if the request wants it; else in none."""
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
    """A response in progress. Its head goes out with the first bytes, so an error before them has its own status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._sending = asyncio.Lock()
        self._sent_at = time.monotonic()
        self._started: bool | None = None  # whether as a stream; None before the head was sent
        self._ended = False
        self.comment = b": queued\n\n"

    async def send(self, data: bytes, *, stream: bool) -> None:
        async with self._sending:
            if self._ended:
                return
            if self._started is None:
                self._started = stream
                headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
                if stream:
                    kind = b"text/event-stream; charset=utf-8"
                    headers = [(b"content-type", kind), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._sent_at = time.monotonic()

    async def break_silence(self) -> None:
        """Send a comment whenever nothing was sent for a while, until the end."""
        while not self._ended:
            limit = HEAD_AFTER if self._started is None else COMMENT_EVERY
            rest = self._sent_at + limit - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
            else:
                await self.send(self.comment, stream=True)

    async def end(self) -> None:
        self._ended = True
        async with self._sending:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: HTTPError) -> None:
        """End with an error. In a stream it is the last event, which OpenAI's clients raise."""
        if self._started is None:
            raise error
        if self._started:
            await self.send(_event(error.json()), stream=True)
        await self.end()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
