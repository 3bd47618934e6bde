"""Answers of Ollama's API: one object, or a stream with an object in each line."""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Generator, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, ClassVar

from pocketvlm.messages import (
    ChatCompletion,
    ChatRequest,
    ChoiceLogprobs,
    FinishReason,
    Timings,
    ToolCallDelta,
    Usage,
)
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.protocols.call_arguments import complete_arguments
from pocketvlm.server.protocols.error_forms import ollama_error
from pocketvlm.server.protocols.exchange import Chunks, Exchange, Run, no_chunks
from pocketvlm.server.protocols.ollama.names import canonical, listed
from pocketvlm.server.protocols.ollama.request import ChatBody, GenerateBody

_NS = 1_000_000  # in a millisecond
_REASONS: Mapping[FinishReason, str] = {"stop": "stop", "length": "length", "tool_calls": "stop"}
_GOES_ON: Mapping[str, Any] = {"done": False}
_NOTHING = ChatRequest.parse([{"role": "user", "content": ""}])  # stands for the request that there is not


def time_text(seconds: float) -> str:
    """Return a time, in seconds since 1970, as RFC 3339 writes it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


class OllamaExchange(Exchange):
    """A request without messages or a prompt only loads the model, or unloads it: its answer is never a stream.

    `model` is the exact name of the model that is asked. Raises RequestError with the path of the wrong field.
    """

    media_type: ClassVar[bytes] = b"application/x-ndjson"

    def __init__(self, body: ChatBody | GenerateBody, model: str | None) -> None:
        self._asks = body.asks
        request, paths = body.read(model) if self._asks else (_NOTHING.model_copy(update={"model": model}), {})
        stream = self._asks and body.stream is not False
        super().__init__(request, stream=stream, paths=paths)
        self.keep_alive = body.keep_alive
        self.only_unloads = not self._asks and body.keep_alive == 0
        self.only_loads = not self._asks and not self.only_unloads
        self._name = body.model or ""
        self._raw = isinstance(body, GenerateBody) and bool(body.raw)
        self._began = time.perf_counter()

    def chunks(self, run: Run) -> Chunks:
        return run(self.request, raw=self._raw) if self._asks else no_chunks()

    def answer(self, chunks: Chunks) -> Generator[bytes, None, None]:
        if self._asks:
            yield from super().answer(chunks)
        else:
            reason = "unload" if self.only_unloads else "load"
            yield self._line(self._name, self.written("", "", []), {"done": True, "done_reason": reason})

    @abstractmethod
    def written(self, text: str, thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the fields of an answer, or of a piece of one, that hold what the model wrote."""

    def whole(self, completion: ChatCompletion) -> bytes:
        [choice] = completion.choices
        message = choice.message
        calls = [
            complete
            for i, call in enumerate(message.tool_calls or ())
            if (complete := _call(i, call.id, call.function.name, call.function.arguments))
        ]
        fields = self.written(message.text, message.reasoning_content or "", calls)
        extensions = {"not_enforced": completion.not_enforced, "notes": completion.notes}
        end = self._end(choice.finish_reason, completion.usage, completion.timings, extensions)
        return self._line(completion.model, fields | _scores(choice.logprobs), end)

    def events(self, chunks: Chunks) -> Generator[bytes, None, None]:
        calls = _Calls()
        reason: FinishReason = "stop"
        extensions: dict[str, list[str] | None] = {}
        for chunk in chunks:
            for choice in chunk.choices:
                delta = choice.delta
                complete = calls.add(delta.tool_calls or ())
                reason, last = choice.finish_reason or reason, choice.finish_reason is not None
                if last:
                    complete += calls.finish()
                text, thought = delta.content or "", delta.reasoning_content or ""
                if text or thought or complete or choice.logprobs:
                    fields = self.written(text, thought, complete)
                    yield self._line(chunk.model, fields | _scores(choice.logprobs))
            if chunk.timings is not None:
                extensions = {"not_enforced": chunk.not_enforced, "notes": chunk.notes}
            if chunk.usage is not None and chunk.timings is not None:
                end = self._end(reason, chunk.usage, chunk.timings, extensions)
                yield self._line(chunk.model, self.written("", "", []), end)

    def failure(self, error: HTTPError) -> bytes:
        return _line(ollama_error(error))

    def waiting(self, state: str) -> bytes:
        """Return a piece without text, which clients add to the others. None skips blank lines."""
        return self._line(self._name, self.written("", "", []), {"done": False, "status": state})

    def _line(self, model: str, fields: Mapping[str, Any], end: Mapping[str, Any] = _GOES_ON) -> bytes:
        """Return an answer or a piece of one. `model` is the name of the model that answers."""
        name = self._name if canonical(self._name) == canonical(model) else listed(model)
        return _line({"model": name, "created_at": time_text(time.time()), **fields, **end})

    def _end(
        self, reason: FinishReason, usage: Usage, timings: Timings, extensions: Mapping[str, list[str] | None]
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "done": True,
            "done_reason": _REASONS[reason],
            "total_duration": int(1e9 * (time.perf_counter() - self._began)),
            "load_duration": int(_NS * timings.load_ms),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int(_NS * timings.prefill_ms),
            "eval_count": usage.completion_tokens,
            "eval_duration": int(_NS * timings.decode_ms),
        }
        return fields | {name: value for name, value in extensions.items() if value}


class Chat(OllamaExchange):
    def written(self, text: str, thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return {"message": _with({"role": "assistant", "content": text}, thought, calls)}


class Generate(OllamaExchange):
    def written(self, text: str, thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        return _with({"response": text}, thought, calls)


def _with(fields: dict[str, Any], thought: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return fields | ({"thinking": thought} if thought else {}) | ({"tool_calls": calls} if calls else {})


class _Calls:
    """Joins the pieces of tool calls: here, a call comes whole."""

    def __init__(self) -> None:
        self._open: ToolCallDelta | None = None
        self._arguments: list[str] = []

    def add(self, deltas: Iterable[ToolCallDelta]) -> list[dict[str, Any]]:
        """Return the calls that are complete because another one has begun."""
        complete: list[dict[str, Any]] = []
        for delta in deltas:
            if self._open is None or delta.index != self._open.index:
                complete += self.finish()
                self._open = delta
            self._arguments.append(delta.function.arguments)
        return complete

    def finish(self) -> list[dict[str, Any]]:
        """Return the last call, if it is complete."""
        first, arguments = self._open, "".join(self._arguments)
        self._open, self._arguments = None, []
        call = _call(first.index, first.id or "", first.function.name or "", arguments) if first else None
        return [call] if call else []


def _call(index: int, id: str, name: str, arguments: str) -> dict[str, Any] | None:
    """Return a tool call, None if the limit of the answer has cut it short: its arguments must be an object."""
    if (value := complete_arguments(arguments)) is None:
        return None
    return {"id": id, "function": {"index": index, "name": name, "arguments": value}}


def _scores(logprobs: ChoiceLogprobs | None) -> dict[str, Any]:
    return {"logprobs": [entry.model_dump(exclude_defaults=True) for entry in logprobs.content]} if logprobs else {}


def _line(fields: Mapping[str, Any]) -> bytes:
    """Return an object in ASCII: a message of an error may quote half of a surrogate pair."""
    return json.dumps(fields).encode() + b"\n"
