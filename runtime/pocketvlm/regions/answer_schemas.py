"""The JSON Schema of a list of places, to which answers of `locate` are held."""

from __future__ import annotations

from typing import Any

MAX_PLACES = 100
_MAX_LABEL = 80  # characters


def list_of_boxes(box: str, number: dict[str, Any], *, label_first: bool = False) -> dict[str, Any]:
    """Return the schema of a list of objects with a label and four numbers under the key `box`."""
    label = {"label": {"type": "string", "maxLength": _MAX_LABEL}}
    numbers = {box: {"type": "array", "items": number, "minItems": 4, "maxItems": 4}}
    properties = {**label, **numbers} if label_first else {**numbers, **label}
    return {
        "type": "array",
        "maxItems": MAX_PLACES,
        "items": {
            "type": "object",
            "properties": properties,
            "required": [*properties],
            "additionalProperties": False,
        },
    }


THOUSANDTHS = {"type": "integer", "minimum": 0, "maximum": 1000}
PIXELS = {"type": "integer", "minimum": 0, "maximum": 99999}
FRACTIONS = {"type": "number", "minimum": 0, "maximum": 1}
