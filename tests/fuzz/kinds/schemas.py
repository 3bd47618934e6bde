"""JSON schemas of answers and tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fuzz.cases import Original
from fuzz.kinds import Attempt, Work
from pocketvlm import VLM

BATCH = 150
SCHEMAS: dict[str, Any] = {
    "person": {
        "type": "object",
        "title": "Person",
        "description": "Someone",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 8, "pattern": "^[A-Z][a-z]*$"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "size": {"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5},
            "born": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"enum": ["a", "b", 1, None]}, "minItems": 1, "maxItems": 3},
            "friend": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "references": {
        "$defs": {
            "point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "items": False},
            "shape": {"oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/line"}]},
            "circle": {
                "properties": {"kind": {"const": "circle"}, "at": {"$ref": "#/$defs/point"}},
                "required": ["kind"],
            },
            "line": {"properties": {"kind": {"const": "line"}}, "required": ["kind"], "type": ["object"]},
        },
        "type": "object",
        "properties": {"shapes": {"type": "array", "items": {"$ref": "#/$defs/shape"}}},
        "allOf": [{"required": ["shapes"]}],
        "patternProperties": {"^x-": {"type": "boolean"}},
        "minProperties": 1,
        "maxProperties": 4,
    },
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "draw", "description": "Draw it.", "parameters": SCHEMAS["references"]},
    },
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"where": {"enum": ["left", "right"]}},
                "required": ["where"],
            },
        },
    },
]


def originals() -> dict[str, Original]:
    named = {**SCHEMAS, "tools": TOOLS}
    return {name: Original("json_text", json.dumps(value).encode()) for name, value in named.items()}


@contextmanager
def opened(_: Work) -> Iterator[Attempt]:
    with VLM.load(threads=1, vision="gguf", context_size=1024) as vlm:

        def attempt(name: str, data: bytes) -> str | None:
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                return "not JSON"
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": value, "strict": False}}
            fields = {"tools": value, "tool_choice": "required"} if name == "tools" else {"response_format": form}
            vlm.chat([{"role": "user", "content": "hi"}], max_tokens=24, **fields)
            return None

        yield attempt
