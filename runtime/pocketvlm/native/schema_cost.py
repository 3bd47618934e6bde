"""Whether a schema is certainly cheap to compile. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

# Measured with llguidance 1.9: what stays below these compiles in about 0.1 s on one core at most.
_MAX_TEXT = 8_000  # characters
_MAX_COUNTED = 10  # properties of an object that limits their number, and patterns of names
_MAX_DIGITS = 3  # of a multipleOf: the compiler's automaton has as many states as its digits say
_ALONE = {"x-guidance", "$defs"}  # stand next to other keywords and assert nothing


def is_cheap(rule: str) -> bool:
    """Whether a rule, `%json` and a schema in the compiler's keywords, is small and free of what grows faster than it.

    False where that is unknown.
    """
    if len(rule) > _MAX_TEXT:
        return False
    try:
        stack: list[Any] = [json.loads(rule.removeprefix("%json "))]
    except (ValueError, RecursionError):  # more digits or levels than Python reads
        return False
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            if not _grows_slowly(value):
                return False
            stack += value.values()
        elif isinstance(value, list):
            stack += value
    return True


def _grows_slowly(schema: Mapping[str, Any]) -> bool:
    """Judge one object, which may also hold properties or be a constant: then it may be judged too strictly.

    Schemas that apply to the same value are multiplied with each other.
    """
    keys = set(schema)
    if "allOf" in keys or ({"anyOf", "$ref"} & keys and len(keys - _ALONE) > 1):
        return False
    if len(_map(schema, "patternProperties")) > _MAX_COUNTED:
        return False
    if {"minProperties", "maxProperties"} & keys and len(_map(schema, "properties")) > _MAX_COUNTED:
        return False
    multiple = schema.get("multipleOf")
    if isinstance(multiple, bool) or not isinstance(multiple, int | float):  # the schema of a property of this name
        return True
    return _digits(multiple) <= _MAX_DIGITS


def _map(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, Mapping) else {}


def _digits(value: float) -> float:
    number = Decimal(str(value))
    if not number.is_finite():
        return math.inf
    _, digits, exponent = number.normalize().as_tuple()
    return len(digits) + max(0, int(exponent))
