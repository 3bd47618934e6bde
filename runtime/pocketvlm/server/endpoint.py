"""A route that answers: from the body to the answer or stream. A client that leaves cancels its request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketvlm.decisions.choices import Choices
from pocketvlm.decisions.decision import Decision
from pocketvlm.engine.interface import CancellationToken, TokenCount
from pocketvlm.messages import ChatRequest
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.pictures.known_files import KnownFiles
from pocketvlm.server.body import read_object
from pocketvlm.server.http_errors import HTTPError, http_error_of, shutting_down
from pocketvlm.server.models import Lease, Models
from pocketvlm.server.pictures import Pictures
from pocketvlm.server.protocols.exchange import Chunks, Exchange, no_chunks
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.server.settings import Settings
from pocketvlm.system.thread_stream import ThreadStream

HEAD_AFTER = 2.0  # seconds without an answer, after which a stream begins; until then an error has its own status
SILENCE = 3.0  # seconds without anything in a stream: clients and proxies give up after five or more

Parse = Callable[[dict[str, Any]], Exchange]
Put = Callable[[bytes], None]


class Answers:
    """The requests that are being answered, in every API. While `draining`, new ones are refused."""

    def __init__(self, models: Models, settings: Settings, handles: PictureHandles) -> None:
        self._models = models
        self._settings = settings
        self._handles, self._known_files = handles, KnownFiles()
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    def endpoint(self, parse: Parse, *, in_thread: bool = False) -> ASGIApp:
        """Return the ASGI app that answers what `parse` makes of a body. `parse` raises RequestError or HTTPError.

        `in_thread`: parsing may take long even where the body is small.
        """
        return _Endpoint(self, parse, in_thread=in_thread)

    def counter(self, parse: Parse, *, in_thread: bool = False) -> ASGIApp:
        """Return the ASGI app that counts the tokens of what `endpoint` would answer."""
        return _Endpoint(self, lambda body: parse(body).counting(), in_thread=in_thread)

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def abort(self) -> None:
        """End all running and waiting requests with an error."""
        for task in self._tasks:
            task.cancel()

    async def answer(
        self, parse: Parse, scope: Scope, receive: Receive, send: Send, *, in_thread: bool = False
    ) -> None:
        if self.draining:
            raise shutting_down()
        settings = self._settings
        exchange = await read_object(
            scope,
            receive,
            parse,
            max_body=settings.max_body,
            timeout=settings.read_timeout,
            in_thread=in_thread,
        )
        reply = _Reply(exchange, send)
        record = RequestRecord.of(scope)
        record.stream = None if exchange.only_counts else exchange.stream  # the metrics are those of answers
        work = asyncio.create_task(self._work(exchange, record, reply))
        disconnect = asyncio.create_task(_disconnect(receive))
        silence = asyncio.create_task(reply.break_silence() if reply.stream else asyncio.sleep(0))
        self._tasks.add(work)
        try:
            await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            silence.cancel()
            if not work.done():
                record.left = True
                work.cancel()
            await work
        except asyncio.CancelledError:
            if record.left:
                raise ClientDisconnect from None
            await reply.fail(shutting_down())
        except Exception as error:  # any error becomes a response
            http_error = http_error_of(error, exchange.sent_path)
            record.code = http_error.code
            await reply.fail(http_error)
        finally:
            disconnect.cancel()
            silence.cancel()
            work.cancel()
            self._tasks.discard(work)

    async def _work(self, exchange: Exchange, record: RequestRecord, reply: _Reply) -> None:
        model = self._models.asked(exchange.request.model)
        record.model = exchange.model = model.name
        if exchange.only_unloads:
            self._models.unload(model.name)
            await reply.send(b"".join(exchange.answer(no_chunks())))
            return await reply.end()
        reply.state = model.waits_for
        cancellation = CancellationToken()
        pictures = Pictures(self._settings, self._handles, self._known_files, cancellation)

        def work(put: Put) -> Generator[bytes, None, None]:
            return exchange.body(_LeasedModel(exchange, lease, record, pictures, cancellation, put))

        lease = await self._models.lease(
            model, exchange.keep_alive, counts=exchange.only_counts, only_loads=exchange.only_loads
        )
        try:
            reply.state = lambda: "working"
            # The end of the thread frees the slot, while the client may still be reading.
            stream = ThreadStream(work, stop=cancellation.stop, ended=lease.release)
        except BaseException:  # the system gave no thread
            lease.release()
            raise
        try:
            while batch := await stream.fetch():
                if data := b"".join(batch):  # an empty piece would count as an end of the silence
                    await reply.send(data)
            await reply.end()
        finally:
            await stream.cancel()


class _Endpoint:
    """An object, because Starlette takes a function for one that gets a Request."""

    def __init__(self, answers: Answers, parse: Parse, *, in_thread: bool = False) -> None:
        self._answers = answers
        self._parse = parse
        self._in_thread = in_thread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answers.answer(self._parse, scope, receive, send, in_thread=self._in_thread)


class _LeasedModel:
    """The model of one request, as its exchange uses it. `put` sends something at once, while the model is busy."""

    def __init__(
        self,
        exchange: Exchange,
        lease: Lease,
        record: RequestRecord,
        pictures: Pictures,
        cancellation: CancellationToken,
        put: Put,
    ) -> None:
        self._exchange, self._lease, self._put = exchange, lease, put
        self._pictures, self._cancellation = pictures, cancellation
        self.watch, self.note = record.watch, record.note

    def run(self, request: ChatRequest, *, raw: bool = False) -> Chunks:
        return self._lease.vlm.run(
            request,
            raw=raw,
            progress=self._report_progress,
            pictures=self._pictures,
            cancellation=self._cancellation,
            queue_ms=self._lease.queue_ms,
            load_ms=self._lease.load_ms,
            buffered=not self._exchange.stream,
        )

    def count(self, request: ChatRequest) -> TokenCount:
        return self._lease.vlm.count(request, pictures=self._pictures)

    def decide(self, request: ChatRequest, choices: Choices) -> Decision:
        return self._lease.vlm.run_decision(
            request,
            choices,
            pictures=self._pictures,
            cancellation=self._cancellation,
            queue_ms=self._lease.queue_ms,
            load_ms=self._lease.load_ms,
        )

    def _report_progress(self, done: int, total: int) -> None:
        if self._exchange.stream:
            self._put(self._exchange.waiting(f"encoding {done}/{total}"))


class _Reply:
    """A response in progress. Its head goes out with the first bytes, so an error before them has its own status."""

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self.stream = exchange.stream
        self._exchange = exchange
        self._send = send
        self._sending = asyncio.Lock()
        self._sent_at = time.monotonic()
        self._started = False
        self._ended = False
        self.state: Callable[[], str] = lambda: "queued"

    async def send(self, data: bytes) -> None:
        async with self._sending:
            if self._ended:
                return
            if not self._started:
                self._started = True
                headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
                if self.stream:
                    kind = (b"content-type", self._exchange.media_type)
                    headers = [kind, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._sent_at = time.monotonic()

    async def break_silence(self) -> None:
        """Send something whenever nothing was sent for a while, until the end."""
        while not self._ended:
            rest = self._sent_at + (SILENCE if self._started else HEAD_AFTER) - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
            else:
                await self.send(self._exchange.waiting(self.state()))

    async def end(self) -> None:
        self._ended = True
        async with self._sending:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: HTTPError) -> None:
        """End with an error. In a stream that has begun it is the last event."""
        if not self._started:
            raise error
        if self.stream:
            await self.send(self._exchange.failure(error))
        await self.end()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
