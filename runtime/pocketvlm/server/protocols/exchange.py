"""What every API of the server states about one request: what it asks of the model, and how its answer is written."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any, ClassVar, Protocol

from pocketvlm.chat.completion import fold
from pocketvlm.decisions.choices import Choices
from pocketvlm.decisions.decision import Decision
from pocketvlm.engine.interface import TokenCount
from pocketvlm.errors import RequestError
from pocketvlm.messages import ChatCompletion, ChatCompletionChunk, ChatRequest, Timings, Usage
from pocketvlm.server.http_errors import HTTPError

Chunks = Generator[ChatCompletionChunk, None, None]


class Run(Protocol):
    """`VLM.run` of the model that was asked for, with everything but the request given."""

    def __call__(self, request: ChatRequest, *, raw: bool = False) -> Chunks: ...


class AskedModel(Protocol):
    """The model that was asked for, as an exchange uses it."""

    @property
    def run(self) -> Run: ...

    def count(self, request: ChatRequest) -> TokenCount:
        """Count the tokens of a prompt."""
        ...

    def decide(self, request: ChatRequest, choices: Choices) -> Decision:
        """Return the probabilities of choices as answers to a request."""
        ...

    def note(self, usage: Usage, timings: Timings) -> None:
        """Record these for the log and the metrics, where there are no chunks to `watch`."""
        ...

    def watch(self, chunks: Chunks) -> Chunks:
        """Record what the chunks of an answer say, for the log and the metrics."""
        ...


class Exchange(ABC):
    """One request in the words of one API, and its answer in them.

    `request` is what it asks of the model. `stream`: the answer is sent in pieces. `paths` maps the paths of fields in
    `request` to those of what the client sent, where they differ: {"messages.2": "input.1"}.
    """

    media_type: ClassVar[bytes] = b"text/event-stream; charset=utf-8"  # of a stream
    keep_alive: float | None = None  # seconds, as `Models.lease` takes them
    only_loads = False  # nothing is asked of the model, which has to be loaded
    only_unloads = False  # nothing is asked of the model, which has to leave
    only_counts = False  # only the tokens of the prompt are asked for

    def __init__(self, request: ChatRequest, *, stream: bool, paths: Mapping[str, str] | None = None) -> None:
        self.request = request
        self.stream = stream
        self._paths = paths or {}
        self.model = request.model or ""  # the name of the one that answers, once that is known

    def chunks(self, run: Run) -> Chunks:
        """Return the chunks of the answer."""
        return run(self.request)

    def counting(self) -> Exchange:
        """Return this exchange, as one that counts the tokens of its prompt instead of answering it."""
        self.only_counts, self.stream = True, False
        return self

    def body(self, model: AskedModel) -> Generator[bytes, None, None]:
        """Yield the body of what is answered to the client."""
        if self.only_counts:
            yield self.counted(model.count(self.request))
        else:
            yield from self.answer(model.watch(self.chunks(model.run)))

    def answer(self, chunks: Chunks) -> Generator[bytes, None, None]:
        """Yield the body of the answer."""
        with closing(chunks):
            placed = self._with_sent_paths(chunks)
            if self.stream:
                yield from self.events(placed)
            else:
                yield self.whole(self.folded(placed))

    def folded(self, chunks: Chunks) -> ChatCompletion:
        """Return the whole answer that is not streamed."""
        return fold(chunks)

    @abstractmethod
    def whole(self, completion: ChatCompletion) -> bytes:
        """Return the body of an answer that is not streamed."""

    @abstractmethod
    def events(self, chunks: Chunks) -> Generator[bytes, None, None]:
        """Yield the events of a stream, framed, one or more for each chunk and the last one of the API."""

    @abstractmethod
    def failure(self, error: HTTPError) -> bytes:
        """Return the last event of a stream that fails after its head was sent."""

    def counted(self, count: TokenCount) -> bytes:
        """Return the body of an answer that counts the tokens of the prompt: OpenAI's form, unless overridden."""
        return json.dumps({"object": "response.input_tokens", "input_tokens": count.total}).encode()

    def waiting(self, state: str) -> bytes:
        """Return what is sent while there is nothing to send: a comment, which clients of event streams skip."""
        return f": {state}\n\n".encode()

    def sent_path(self, path: str) -> str:
        """Return the path of a field of `request` in what the client sent."""
        return _mapped(path, self._paths)

    def _with_sent_paths(self, chunks: Chunks) -> Chunks:
        """Yield the chunks with the client's own paths of what its schemas say and the answer may not follow."""
        for chunk in chunks:
            if chunk.not_enforced is not None:
                own = [self.sent_path(path) for path in chunk.not_enforced]
                chunk = chunk.model_copy(update={"not_enforced": own})
            yield chunk


def no_chunks() -> Chunks:
    yield from ()


def parsed(fields: Mapping[str, Any], paths: Mapping[str, str]) -> ChatRequest:
    """Validate the fields of a ChatRequest that was made of another API's. Raises RequestError with its paths."""
    try:
        return ChatRequest.parse_object(fields)
    except RequestError as error:
        raise type(error)(error.message, error.param and _mapped(error.param, paths)) from None


def _mapped(path: str, paths: Mapping[str, str]) -> str:
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        if (own := paths.get(".".join(parts[:length]))) is not None:
            return ".".join(filter(None, [own, *parts[length:]]))
    return path


def event(data: bytes, name: str | None = None) -> bytes:
    """Return one server-sent event. `data` has no line breaks."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + data + b"\n\n"
