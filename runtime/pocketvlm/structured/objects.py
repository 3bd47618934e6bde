"""Which properties objects may have: by default, those that their schema names. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pocketvlm.structured.dialects import LeaveOut, Schema
from pocketvlm.structured.formats import COMPILED, PATTERNS
from pocketvlm.structured.references import References

MAX_PROPERTIES = 400  # of one object
MAX_PATTERN_PROPERTIES = 100  # the compiler compares each with each
# Properties of an object that limits their number: the compiler writes it once for each of them. Of 40, it gives up in
# the middle of an answer.
_MAX_COUNTED = 35
_OF_NAMES = frozenset("pattern minLength maxLength format const enum not if anyOf oneOf".split())


def close(schema: Schema, references: References, *, always: bool = False) -> None:
    """Exclude properties that are named neither here nor by other schemas that apply to the same value, in place.

    Not where none is named, nor where a schema says what other properties may be, except `always`.
    """
    names = _Names.of(schema, references)
    listed = names.listed or "patternProperties" in schema
    if not always and ({"additionalProperties", "propertyNames"} & set(schema) or not listed or names.is_open):
        return
    own = schema.pop("properties", {})
    rest = dict(schema)
    schema.clear()
    schema["properties"] = {name: own.get(name, True) for name in names.names}
    schema.update({**rest, "additionalProperties": False})
    if references.types(rest) is None:
        schema["type"] = "object"


def close_unevaluated(schema: Schema, references: References) -> bool:
    """Close a schema with `unevaluatedProperties: false` in place, if it means that; return whether it does.

    It does unless what names a property applies to some values only.
    """
    means_closed = not _Names.of(schema, references).conditional
    if means_closed:
        close(schema, references, always=True)
    return means_closed


@dataclass(frozen=True)
class _Names:
    """The names of properties in a schema and in all that may apply to the same value.

    `listed`: some schema lists properties. `is_open`: some says what others may be. `conditional`: some applies to some
    values only.
    """

    names: list[str]
    listed: bool
    is_open: bool
    conditional: bool

    @classmethod
    def of(cls, schema: Schema, references: References) -> _Names:
        names: dict[str, None] = {}
        listed = is_open = conditional = False
        stack: list[Any] = [schema]
        seen: set[int] = set()  # of schemas that are kept by `references`
        while stack:
            part = stack.pop()
            if not isinstance(part, Mapping) or id(part) in seen:
                continue
            now = schema if part is schema else references.modern(part)
            seen.add(id(part))
            if part is not schema:
                is_open |= now.get("additionalProperties", False) is not False or "patternProperties" in now
            is_open |= now.get("unevaluatedProperties", False) is not False
            listed |= "properties" in now
            names |= dict.fromkeys([*now.get("properties", ()), *now.get("required", ())])
            parts: list[Any] = []
            for key, value in now.items():
                if key == "$ref":
                    with suppress(LookupError):
                        parts.append(references.resolve(value))
                elif key == "allOf":
                    parts += value
                elif key in ("anyOf", "oneOf"):
                    parts += value
                    conditional = True
                elif key in ("if", "then", "else"):
                    parts.append(value)
                    conditional = True
                elif key in ("dependentSchemas", "dependencies", "dependentRequired") and isinstance(value, Mapping):
                    parts += [item if isinstance(item, Mapping) else {"required": item} for item in value.values()]
                    conditional = True
            stack += reversed(parts)
        return cls(list(names), listed, is_open, conditional)


def write_names(schema: Schema, references: References) -> bool:
    """Replace `propertyNames` by the names or the pattern of properties, in place; return whether that was possible."""
    if (rule := schema.pop("propertyNames", None)) is None:
        return True
    parts = list(references.conjuncts(rule))
    about = {key for part in parts for key in part if key in _OF_NAMES}
    if not {*PATTERNS, *COMPILED} & {part["format"] for part in parts if "format" in part}:
        about.discard("format")  # an annotation
    if rule is not False and not about:
        return True  # all names are strings
    if {"properties", "patternProperties"} & set(schema):
        return False
    value = schema.get("additionalProperties", True)
    names = references.values(rule)
    if names is not None and len(names) <= MAX_PROPERTIES:
        listed = [name for part in parts for name in part.get("enum", ())] or [json.loads(name) for name in names]
        fitting = [name for name in listed if isinstance(name, str) and json.dumps(name) in names]
        schema.update(properties=dict.fromkeys(fitting, value), additionalProperties=False)
        return True
    [part, *others] = parts or [{}]
    pattern = None
    if about == {"pattern"}:
        pattern = part.get("pattern")
    elif about == {"format"}:
        pattern = PATTERNS.get(part.get("format", ""))
    elif about and about <= {"minLength", "maxLength"}:
        pattern = f"(?s)^.{{{part.get('minLength', 0)},{part.get('maxLength', '')}}}$"
    if others or pattern is None:
        return False
    schema.update(patternProperties={pattern: value}, additionalProperties=False)
    return True


def property_counts(schema: Schema, written: Schema, *, plain: bool, leave_out: LeaveOut) -> Schema:
    """Return `minProperties` and `maxProperties` where the compiler can enforce them.

    `written` is the schema in the compiler's keywords. `plain`: no other applies to the same value. The compiler counts
    a property that the answer writes twice as two, and counts nothing where some are optional.
    """
    result: Schema = {}
    low, high = schema.get("minProperties", 0), schema.get("maxProperties")
    properties, required = written.get("properties", {}), set(written.get("required", ()))
    is_closed = written.get("additionalProperties") is False and not written.get("patternProperties")
    if low > len(required):
        if low == 1 and plain and (is_closed or not properties) and len(properties) <= _MAX_COUNTED:
            result["minProperties"] = low
        else:
            leave_out("minProperties")
    if high is not None and not (is_closed and len(properties) <= high):
        all_required = required.issuperset(properties)
        one_more = is_closed and high - len(required) == 1 and len(properties) <= _MAX_COUNTED
        if plain and (all_required or one_more):
            result["maxProperties"] = high
        else:
            leave_out("maxProperties")
    return result
