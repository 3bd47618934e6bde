"""One operation of the server, such as POST /chat/completions, as the OpenAPI document describes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

REASONS = {
    "400": "The request is wrong: not JSON, a field, a picture, or longer than the context.",
    "401": "No key, or a wrong one.",
    "403": "A Host or Origin header that is not served.",
    "404": "No such route, model, picture, response or item.",
    "405": "The route does not accept this method.",
    "408": "The body took too long.",
    "413": "The body is too large.",
    "415": "The body is compressed, or a form.",
    "429": "The queue is full.",
    "500": "The server failed; code engine_crashed where native code crashed, model_error for a fault of the model.",
    "503": "The server is shutting down; code system_limit where the system gives no memory, thread or file.",
}
EVENTS = "text/event-stream"
_WITHOUT_BODY = ("413", "415", "429")  # statuses that an operation without a body never has


@dataclass(frozen=True, eq=False)
class Component:
    """A JSON schema that no model states, and its name in the document."""

    name: str
    schema: Mapping[str, Any]


Schema = type[BaseModel] | Component
Reference = Callable[[Schema, JsonSchemaMode], dict[str, Any]]


@dataclass(frozen=True)
class Stream:
    """What a stream consists of: JSON of one of these schemas in each event, or in each line of another media type.

    `end` is the last event's data where that is not JSON. With `named`, each event has its type in an `event:` line.
    """

    data: tuple[Schema, ...]
    media_type: str = EVENTS
    end: str | None = None
    named: bool = False

    def describe(self, reference: Reference) -> dict[str, Any]:
        """Return the schema of each event or line: before OpenAPI 3.2 that is how a stream is described."""
        payloads = [reference(schema, "serialization") for schema in self.data]
        payload = payloads[0] if len(payloads) == 1 else {"anyOf": payloads}
        if self.media_type != EVENTS:
            return payload
        data: dict[str, Any] = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": payload,
        }
        if self.end is not None:
            data = {"anyOf": [{"const": self.end}, data]}
        fields = {"event": {"type": "string"}} if self.named else {}
        return {"type": "object", "required": [*fields, "data"], "properties": {**fields, "data": data}}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """`name` is its operationId. `request` and `answer` are JSON of these schemas, or OpenAPI's content by media type.

    `error` is the form of its errors. It exists once with each of the `prefixes`.
    """

    method: Literal["get", "post", "delete"]
    path: str
    name: str
    summary: str
    answer: Schema | Mapping[str, Any]
    error: Schema
    request: Schema | Mapping[str, Any] | None = None
    stream: Stream | None = None
    without: tuple[str, ...] = ()  # the statuses that it never has
    needs_key: bool = True
    success: str = "Success."
    prefixes: tuple[str, ...] = ("/v1", "")

    def schemas(self) -> Iterator[tuple[Schema, JsonSchemaMode]]:
        """Yield the schemas that the description refers to, and whether they are read or written."""
        if isinstance(self.request, type | Component):
            yield self.request, "validation"
        if isinstance(self.answer, type | Component):
            yield self.answer, "serialization"
        for schema in self.stream.data if self.stream else ():
            yield schema, "serialization"
        yield self.error, "serialization"

    def describe(self, prefix: str, reference: Reference) -> dict[str, Any]:
        answer = _content(self.answer, "serialization", reference)
        if self.stream:
            answer[self.stream.media_type] = {"schema": self.stream.describe(reference)}
        absent = {*self.without, *(() if self.request else _WITHOUT_BODY)}
        error = _content(self.error, "serialization", reference)
        errors = {
            status: {"description": reason, "content": error}
            for status, reason in REASONS.items()
            if status not in absent
        }
        described: dict[str, Any] = {
            "operationId": self.name + ("V1" if prefix == "/v1" else ""),
            "summary": self.summary,
            "responses": {"200": {"description": self.success, "content": answer}, **errors},
        }
        if self.request:
            described["requestBody"] = {
                "required": True,
                "content": _content(self.request, "validation", reference),
            }
        if names := re.findall(r"\{(\w+)\}", self.path):
            described["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
        if not self.needs_key:
            described["security"] = []
        return described


def _content(schema: Schema | Mapping[str, Any], mode: JsonSchemaMode, reference: Reference) -> dict[str, Any]:
    if isinstance(schema, type | Component):
        return {"application/json": {"schema": reference(schema, mode)}}
    return dict(schema)
