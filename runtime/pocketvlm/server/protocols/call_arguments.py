"""The arguments of a tool call, which the model writes as JSON, as an object. Nothing here raises."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json


def parsed_arguments(text: str) -> dict[str, Any]:
    """Return the arguments of a call, or as many as there are where the answer was cut short."""
    try:
        value = from_json(text or "{}", allow_partial="trailing-strings")
    except ValueError:
        return complete_arguments(text) or {}
    return value if isinstance(value, dict) else {}


def complete_arguments(text: str) -> dict[str, Any] | None:
    """Return the arguments of a call, None if they are not a whole object. Halves of surrogate pairs become "?"."""
    try:
        value = from_json(text or "{}")
    except ValueError:
        try:  # from_json refuses halves of surrogate pairs
            value = from_json(json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None
