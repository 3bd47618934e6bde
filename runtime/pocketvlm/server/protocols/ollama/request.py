"""Requests of Ollama's API as the one request. Unknown fields and options are ignored, as Ollama does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, field_validator

from pocketvlm.errors import RequestError
from pocketvlm.messages import ChatRequest
from pocketvlm.messages.base import Flag, Frozen, JsonObject, Open, Text, TextOrNull
from pocketvlm.messages.field_errors import request_error
from pocketvlm.messages.numbers import as_number
from pocketvlm.messages.request import Think
from pocketvlm.server.protocols.exchange import parsed
from pocketvlm.server.protocols.ollama.durations import seconds

# By the fields of ChatRequest. Other options say how to load a model, or name samplers that are not here.
_OPTIONS = {
    name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed", "repeat_penalty", "presence_penalty")
} | {"frequency_penalty": "frequency_penalty", "max_tokens": "num_predict"}
_MAX_STOPS = 128  # Ollama has no limit
_MARK = "[img]"  # in a message's text: the place of its next picture


def _format(value: object) -> object:
    """Return Ollama's `format` as a `response_format`."""
    if value in (None, ""):
        return None
    if value == "json":
        return {"type": "json_object"}
    if not isinstance(value, Mapping):
        raise ValueError('must be "json" or a JSON schema')
    return {"type": "json_schema", "schema": value}


_Format = Annotated[JsonObject | None, BeforeValidator(_format, json_schema_input_type=JsonObject | str | None)]
_KeepAlive = Annotated[float | None, BeforeValidator(seconds, json_schema_input_type=float | str | None)]
_Objects = Annotated[tuple[Any, ...], WithJsonSchema({"type": "array", "items": {"type": "object"}})]


class _Options(Open):
    """Those that are read. `num_predict` below 1: as many tokens as there is room for."""
