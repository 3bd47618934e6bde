"""JSON Schema -> grammar. Keywords that cannot be enforced are refused with their path, never approximated. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

from pocketvlm.errors import RequestError, UnsupportedError

MAX_SCHEMA = 1 << 17  # characters
MAX_PROPERTIES = 400  # of one object
MAX_DEPTH = 500  # levels, with those behind references: the compiler recurses on the process's stack
# Keywords that restrict values and that the compiler does not know.
UNSUPPORTED = frozenset(
    "not if then else contains minContains maxContains uniqueItems propertyNames dependencies dependentRequired "
    "dependentSchemas unevaluatedItems unevaluatedProperties $dynamicRef $recursiveRef".split()
)
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
# Each string has one spelling: otherwise a property that the schema restricts could come in another one, "\u0061" for
# "a", as one that it does not restrict. And white space is limited.
_COMPILER_OPTIONS = {"whitespace_pattern": r"( |\n {0,16}|\n\t{0,8})", "json_allowed_escapes": '"\\bfnrt'}
Schema: TypeAlias = "dict[str, Any]"


def json_rule(schema: Mapping[str, Any], param: str) -> str:
    """Return the right side of a rule in llguidance's Lark. Raises RequestError leaves with the path of a keyword."""
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        raise UnsupportedError(f"the schema has {len(text):,} characters; at most {MAX_SCHEMA:,} are supported", param)
    _check_depth(schema, param)
    return "%json " + json.dumps({**_normalized(schema, param), "x-guidance": _COMPILER_OPTIONS})


def _normalized(schema: Any, path: str) -> Any:
    """Return the same schema in the keywords that the compiler takes."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise RequestError("must be a schema: an object, true or false", path)
    _check_values(schema, path)
    normalized: Schema = {}
    for key, value in schema.items():
        here = f"{path}.{key}"
        if key == "x-guidance" or (key == "uniqueItems" and value is False):
            continue  # the compiler's own options, which a request must not set; the default
        if key in UNSUPPORTED:
            raise UnsupportedError(f"the keyword {key} is not supported", here)
        if key in _SCHEMA_MAPS:
            if not isinstance(value, Mapping):
                raise RequestError("must be an object", here)
            normalized[key] = {name: _normalized(part, f"{here}.{name}") for name, part in value.items()}
        elif key in _SCHEMA_LISTS:
            if not _is_list(value) or not value:
                raise RequestError("must be a list of schemas that is not empty", here)
            parts = [_normalized(part, f"{here}.{i}") for i, part in enumerate(value)]
            if key == "oneOf":
                if not all(_exclude_each_other(a, b) for a, b in combinations(parts, 2)):
                    raise UnsupportedError("the keyword oneOf is not supported where several may fit; use anyOf", here)
                if "anyOf" in schema:
                    raise UnsupportedError("the keyword oneOf is not supported together with anyOf", here)
            normalized["anyOf" if key == "oneOf" else key] = parts
        elif key == "additionalProperties" or (key == "items" and not _is_list(value)):
            normalized[key] = _normalized(value, here)
        elif key == "items":
            raise UnsupportedError("the keyword items is not supported as a list; use prefixItems", here)
        else:
            normalized[key] = value
    return normalized


def _check_values(schema: Mapping[str, Any], path: str) -> None:
    for key in _NUMBERS:
        if key in schema and (isinstance(schema[key], bool) or not isinstance(schema[key], int | float)):
            raise RequestError("must be a number", f"{path}.{key}")
    for key in _COUNTS:
        if key in schema and (isinstance(schema[key], bool) or not isinstance(schema[key], int) or schema[key] < 0):
            raise RequestError("must be a whole number that is not negative", f"{path}.{key}")
    exclusive = [key for key in ("exclusiveMinimum", "exclusiveMaximum") if key in schema]
    low = schema.get("exclusiveMinimum", schema.get("minimum", -math.inf))
    high = schema.get("exclusiveMaximum", schema.get("maximum", math.inf))
    if exclusive and high - low < 1 and schema.get("type") != "integer":
        key = exclusive[0]  # the compiler would allow the bound itself
        raise UnsupportedError(f"the keyword {key} is not supported for a range narrower than 1", f"{path}.{key}")
    required = schema.get("required", [])
    if not _is_list(required) or not all(isinstance(name, str) for name in required):
        raise RequestError("must be a list of names", f"{path}.required")
    if len(schema.get("properties") or ()) > MAX_PROPERTIES:
        raise UnsupportedError(f"more than {MAX_PROPERTIES} properties are not supported", f"{path}.properties")
    # The compiler counts a property that the answer writes twice as two.
    if schema.get("minProperties", 0) > max(1, len(set(required))):
        raise UnsupportedError(
            "the keyword minProperties is not supported beyond what is required", f"{path}.minProperties"
        )
    if "enum" in schema and (not _is_list(schema["enum"]) or not schema["enum"]):
        raise RequestError("must be a list that is not empty", f"{path}.enum")
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise UnsupportedError("the keyword $ref is supported only within the schema: #/...", f"{path}.$ref")


def _exclude_each_other(a: Any, b: Any) -> bool:
    """Whether it is certain that no value fits both: by type, by value, or by a property that both require."""
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return a is False or b is False
    a_values, b_values = _values(a), _values(b)
    if a_values is not None and b_values is not None:
        return not a_values & b_values
    a_types, b_types = _types(a), _types(b)
    if a_types and b_types and not a_types & b_types and not {"integer", "number"} <= a_types | b_types:
        return True
    if a_types != {"object"} or b_types != {"object"}:
        return False
    required = set(a.get("required", ())) & set(b.get("required", ()))
    a_properties, b_properties = a.get("properties", {}), b.get("properties", {})
    return any(_differ(a_properties.get(name), b_properties.get(name)) for name in required)


def _differ(a: Any, b: Any) -> bool:
    """Whether both list their values and have none in common."""
    a_values = _values(a) if isinstance(a, Mapping) else None
    b_values = _values(b) if isinstance(b, Mapping) else None
    return a_values is not None and b_values is not None and not a_values & b_values


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """Return the values that fit, as JSON, where the schema lists them.

    None where it lists a float, an array or an object: 1 and 1.0 are the same value in different spellings.
    """
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is None or not all(value is None or isinstance(value, str | bool | int) for value in values):
        return None
    return {json.dumps(value) for value in values}


def _types(schema: Mapping[str, Any]) -> set[str]:
    names = schema.get("type", [])
    return {names} if isinstance(names, str) else {name for name in names if isinstance(name, str)}


def _check_depth(schema: Mapping[str, Any], param: str) -> None:
    """Limit how deep references can lead: at most through everything they refer to, one after another."""
    depth = _depth(schema)
    for reference in {value for key, value in _entries(schema) if key == "$ref" and isinstance(value, str)}:
        depth += 1 + _depth(_resolve(schema, reference))
    if depth > MAX_DEPTH:
        raise UnsupportedError(
            f"the schema is too deep: {depth:,} levels with references; at most {MAX_DEPTH} are supported", param
        )


def _resolve(schema: Any, reference: str) -> Any:
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        schema = schema.get(name) if isinstance(schema, Mapping) else None
    return schema


def _depth(value: Any) -> int:
    levels = 0
    level = [value]
    while level := [part for item in level for part in _parts(item)]:
        levels += 1
    return levels


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    for part in _parts(value):
        yield from _entries(part)


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if _is_list(value) else ()


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
