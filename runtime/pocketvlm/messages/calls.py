"""The tool calls of earlier turns, as clients send them back: also empty, cut short, or in older forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Tag
from pydantic_core import from_json

from pocketvlm.messages.base import (
    AlsoTakes,
    Dropped,
    JsonObject,
    Open,
    Text,
    TextOrNull,
    by_form,
    fields_of,
    is_encodable,
)


class FunctionCall(Open):
    """`arguments` is a JSON string that holds an object; some clients send the object."""

    name: Text
    arguments: Annotated[
        Annotated[Text, Tag("<string>")] | Annotated[JsonObject, Tag("<object>")],
        by_form("must be a JSON string or an object"),
        AlsoTakes({"type": "null"}),
    ] = "{}"


def _function(kind: object) -> object:
    return "function" if kind is None else kind


FunctionType = Annotated[
    Literal["function"], BeforeValidator(_function, json_schema_input_type=Literal["function"] | None)
]


class ToolCall(Open):
    id: TextOrNull = ""
    type: FunctionType = "function"
    function: FunctionCall
    index: Dropped = None  # clients keep it from a stream


_CUSTOM = {
    "type": "object",
    "required": ["custom"],
    "properties": {"custom": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}},
}
ToolCalls = tuple[Annotated[ToolCall, AlsoTakes(_CUSTOM)], ...]


def readable_call(call: object) -> tuple[object, str]:
    """Return a call of the request whose arguments are an object, and the text of arguments that are none.

    Anything but a call stays as it is, so that the schema refuses it.
    """
    call = fields_of(call)
    if isinstance(call, Mapping) and isinstance(custom := fields_of(call.get("custom")), Mapping):
        # OpenAI's custom tools take free text.
        as_function = {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}
        return {**call, "type": "function", "function": as_function}, ""
    if not isinstance(call, Mapping) or not isinstance(function := fields_of(call.get("function")), Mapping):
        return call, ""
    key = "parameters" if "parameters" in function and function.get("arguments") is None else "arguments"
    arguments, rest = _object_of(function.get(key))
    return {**call, "function": {**function, "arguments": arguments}}, rest


def _object_of(arguments: object) -> tuple[object, str]:
    """Return arguments as JSON text or an object, and "", or {} and the text if it is not an object."""
    if arguments is None:
        return "{}", ""
    if not isinstance(arguments, str) or not is_encodable(arguments):
        return arguments, ""
    value = _parsed(arguments)
    if isinstance(value, Mapping) and _is_strict(arguments):
        return arguments, ""
    if isinstance(value, str):  # the JSON text of a JSON text
        value = _parsed(value)
    if isinstance(value, Mapping):
        return _finite(value), ""
    return "{}", "" if arguments.strip() in ("", "null", '""') else arguments


def _parsed(text: str) -> object:
    """Parse JSON that may be cut short: max_tokens ends a call anywhere. Return None for text that is not JSON."""
    try:
        return from_json(text)
    except ValueError as error:
        if "trailing characters" in str(error):  # which a partial parse would drop
            return None
    try:
        return from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return None


def _is_strict(text: str) -> bool:
    try:
        from_json(text, allow_inf_nan=False)
    except ValueError:
        return False
    return True


def _finite(value: Any) -> Any:
    """Return a JSON value with null for NaN and infinities, as JavaScript writes them."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
