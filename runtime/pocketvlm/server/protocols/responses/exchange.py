"""One request of Responses and its answer, whole or as events."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter

from pocketvlm.messages import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Timings,
    Usage,
)
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.protocols.exchange import Chunks, Exchange, event
from pocketvlm.server.protocols.responses.answer import (
    Response,
    ResponseFault,
    ResponseIncomplete,
    ResponseInputDetails,
    ResponseOutputDetails,
    ResponseUsage,
)
from pocketvlm.server.protocols.responses.items import Item
from pocketvlm.server.protocols.responses.output import Event, Output
from pocketvlm.server.protocols.responses.schema import CreateResponse, TextOptions
from pocketvlm.server.protocols.responses.stored import ResponseStore, StoredItem
from pocketvlm.server.protocols.responses.tools import Toolbox

STORED = "previous_response_id"  # the path of all that comes from a kept answer
_ITEM: TypeAdapter[Item] = TypeAdapter(Item)


class ResponseExchange(Exchange):
    """`asked` is the client's request, and `items` the whole conversation that it asks about."""

    def __init__(
        self,
        request: ChatRequest,
        *,
        paths: dict[str, str],
        asked: CreateResponse,
        items: Sequence[StoredItem],
        toolbox: Toolbox,
        store: ResponseStore,
    ) -> None:
        super().__init__(request, stream=bool(asked.stream), paths=paths)
        self._asked = asked
        self._items = items
        self._toolbox = toolbox
        self._store = store
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._output = Output(toolbox, summarize=asked.wants_summary, carry=asked.wants_carried_thoughts)
        self._stores = asked.store is not False
        # The event loop writes events while there is no chunk, the thread of the answer afterwards.
        self._numbering = threading.Lock()
        self._number = 0
        self._is_answering = False

    def sent_path(self, path: str) -> str:
        own = super().sent_path(path)
        return STORED if own.startswith(f"{STORED}.") else own

    # ---- whole

    def folded(self, chunks: Chunks) -> ChatCompletion:
        """Collect the items from the chunks: a completion has no text next to calls."""
        return super().folded(self._collected(chunks))

    def whole(self, completion: ChatCompletion) -> bytes:
        reason = completion.choices[0].finish_reason
        _run(self._output.end(complete=reason != "length"))
        return self._final(reason, completion).model_dump_json().encode()

    def _collected(self, chunks: Chunks) -> Chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                _run(self._output.add(choice))
            yield chunk

    # ---- stream

    def events(self, chunks: Chunks) -> Generator[bytes, None, None]:
        reason: str | None = None
        for chunk in chunks:
            if not self._is_answering:
                with self._numbering:
                    self._is_answering = True
                yield self._opening(chunk.model)
            for choice in chunk.choices:
                yield self._framed(self._output.add(choice))
                reason = choice.finish_reason or reason
        yield self._framed(self._output.end(complete=reason != "length"))
        response = self._final(reason, chunk)
        yield self._framed([{"type": f"response.{response.status}", "response": response.model_dump(mode="json")}])

    def waiting(self, state: str) -> bytes:
        """Return events, because some clients give up where none comes for a while. Progress is a comment."""
        if not state.startswith("encoding"):
            with self._numbering:
                if not self._is_answering:
                    return self._opening(self.model) if not self._number else self._in_progress()
        return super().waiting(state)

    def failure(self, error: HTTPError) -> bytes:
        """Return `response.failed`, which some clients read, and `error`, which OpenAI's own raise."""
        code = error.code or error.type
        opening = b"" if self._number else self._opening(self.model)
        fault = ResponseFault(code=code, message=error.message)
        failed = self._response("failed", self.model, error=fault).model_dump(mode="json")
        details = {"type": error.type, "code": code, "message": error.message, "param": error.param}
        last = {"type": "error", "code": code, "message": error.message, "param": error.param, "error": details}
        return opening + self._framed([{"type": "response.failed", "response": failed}, last])

    def _opening(self, model: str) -> bytes:
        if self._number:
            return b""
        response = self._response("in_progress", model).model_dump(mode="json")
        return self._framed({"type": f"response.{name}", "response": response} for name in ("created", "in_progress"))

    def _in_progress(self) -> bytes:
        response = self._response("in_progress", self.model).model_dump(mode="json")
        return self._framed([{"type": "response.in_progress", "response": response}])

    def _framed(self, events: Iterable[Event]) -> bytes:
        framed = []
        for one in events:
            data = {"type": one["type"], "sequence_number": self._number, **one}
            framed.append(event(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"), one["type"]))
            self._number += 1
        return b"".join(framed)

    # ---- the Response object

    def _final(self, reason: str | None, answer: ChatCompletion | ChatCompletionChunk) -> Response:
        """Return the whole answer, after keeping it if it may be kept."""
        assert answer.usage is not None and answer.timings is not None
        status = "incomplete" if reason == "length" else "completed"
        response = self._response(
            status,
            answer.model,
            usage=answer.usage,
            timings=answer.timings,
            not_enforced=answer.not_enforced,
            notes=answer.notes,
        )
        if self._stores:
            written = [item.model_dump(mode="json") for item in self._output.items]
            output = [StoredItem(item, _ITEM.validate_python(item)) for item in written]
            if not self._store.add(self._id, response.model_dump_json().encode(), self._items, output):
                self._stores = False
                return response.model_copy(update={"store": False})
        return response

    def _response(
        self,
        status: str,
        model: str,
        *,
        usage: Usage | None = None,
        timings: Timings | None = None,
        not_enforced: list[str] | None = None,
        notes: list[str] | None = None,
        error: ResponseFault | None = None,
    ) -> Response:
        asked, request = self._asked, self.request
        values: dict[str, Any] = {
            "id": self._id,
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": error,
            "incomplete_details": ResponseIncomplete() if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": _count(asked.max_tool_calls),
            "model": model,
            "output": list(self._output.items),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {
                "effort": asked.reasoning and asked.reasoning.effort,
                "summary": asked.reasoning and asked.reasoning.summary,
            },
            "safety_identifier": asked.safety_identifier,
            "store": self._stores,
            "temperature": request.temperature or 0.0,
            "text": _text(asked),
            "truncation": asked.truncation or "disabled",
            "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
            "tools": self._toolbox.kept,
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "frequency_penalty": request.frequency_penalty or 0.0,
            "presence_penalty": request.presence_penalty or 0.0,
            "usage": usage and _usage(usage),
            "user": asked.user,
            "metadata": dict(asked.metadata or {}),
            "timings": timings,
            "notes": [*self._toolbox.notes, *(notes or ())] or None,
            "not_enforced": not_enforced,
        }
        return Response(**values)


def _run(events: Iterable[Event]) -> None:
    deque(events, maxlen=0)


def _text(asked: CreateResponse) -> dict[str, Any]:
    options = asked.text or TextOptions()
    shown: dict[str, Any] = {"format": options.format or {"type": "text"}}
    return shown | ({"verbosity": options.verbosity} if options.verbosity in ("low", "medium", "high") else {})


def _count(value: object) -> int | None:
    """Return a field that is accepted with any value, None where it is not a count."""
    return value if type(value) is int and 0 <= value < 2**31 else None


def _usage(usage: Usage) -> ResponseUsage:
    details = usage.prompt_tokens_details
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=ResponseInputDetails(
            cached_tokens=details.cached_tokens, image_tokens=details.image_tokens
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=ResponseOutputDetails(reasoning_tokens=usage.completion_tokens_details.reasoning_tokens),
        total_tokens=usage.total_tokens,
    )
