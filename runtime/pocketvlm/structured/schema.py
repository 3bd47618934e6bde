"""JSON Schema -> grammar. What cannot be held to is refused by its path, never approximated. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

from pocketvlm.errors import RequestError, UnsupportedError

MAX_SCHEMA = 1 << 17  # characters
MAX_PROPERTIES = 400  # of one object
MAX_REACH = 500  # levels, those behind references included: the compiler recurses, and its stack is the process's
# Keywords that say something about a value and that the compiler does not know.
UNSUPPORTED = frozenset(
    "not if then else contains minContains maxContains uniqueItems propertyNames dependencies dependentRequired "
    "dependentSchemas unevaluatedItems unevaluatedProperties $dynamicRef $recursiveRef".split()
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
# One way to write each string, or a name that a schema knows could come as one that it does not, "\u0061" for "a";
# and white space with an end.
_OPTIONS = {"whitespace_pattern": r"( |\n {0,16}|\n\t{0,8})", "json_allowed_escapes": '"\\bfnrt'}
Schema: TypeAlias = "dict[str, Any]"


def json_rule(schema: Mapping[str, Any], param: str) -> str:
    """What stands behind a rule's colon in llguidance's Lark. Raises RequestError leaves with the path."""
    text = json.dumps(schema)
    if len(text) > MAX_SCHEMA:
        raise UnsupportedError(f"the schema has {len(text):,} characters; at most {MAX_SCHEMA:,} are compiled", param)
    _check_reach(schema, param)
    return "%json " + json.dumps({**_normal(schema, param), "x-guidance": _OPTIONS})


def _normal(schema: Any, path: str) -> Any:
    """The same schema in words that the compiler takes."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise RequestError("must be a schema: an object, true or false", path)
    _check_values(schema, path)
    found: Schema = {}
    for key, value in schema.items():
        here = f"{path}.{key}"
        if key == "x-guidance" or (key == "uniqueItems" and value is False):
            continue  # the compiler's own switch; what is so anyway
        if key in UNSUPPORTED:
            raise UnsupportedError(f"the keyword {key} is not supported", here)
        if key in _MAPS:
            if not isinstance(value, Mapping):
                raise RequestError("must be an object", here)
            found[key] = {name: _normal(part, f"{here}.{name}") for name, part in value.items()}
        elif key in _LISTS:
            if not _is_list(value) or not value:
                raise RequestError("must be a list of schemas, not empty", here)
            parts = [_normal(part, f"{here}.{i}") for i, part in enumerate(value)]
            if key == "oneOf":
                if not all(_apart(a, b) for a, b in combinations(parts, 2)):
                    raise UnsupportedError("the keyword oneOf is not supported where several may fit; use anyOf", here)
                if "anyOf" in schema:
                    raise UnsupportedError("the keyword oneOf is not supported beside anyOf", here)
            found["anyOf" if key == "oneOf" else key] = parts
        elif key == "additionalProperties" or (key == "items" and not _is_list(value)):
            found[key] = _normal(value, here)
        elif key == "items":
            raise UnsupportedError("the keyword items is not supported as a list; use prefixItems", here)
        else:
            found[key] = value
    return found


def _check_values(schema: Mapping[str, Any], path: str) -> None:
    for key in _NUMBERS:
        if key in schema and (isinstance(schema[key], bool) or not isinstance(schema[key], int | float)):
            raise RequestError("must be a number", f"{path}.{key}")
    for key in _COUNTS:
        if key in schema and (isinstance(schema[key], bool) or not isinstance(schema[key], int) or schema[key] < 0):
            raise RequestError("must be a whole number, not negative", f"{path}.{key}")
    exclusive = [key for key in ("exclusiveMinimum", "exclusiveMaximum") if key in schema]
    low = schema.get("exclusiveMinimum", schema.get("minimum", -math.inf))
    high = schema.get("exclusiveMaximum", schema.get("maximum", math.inf))
    if exclusive and high - low < 1 and schema.get("type") != "integer":
        key = exclusive[0]  # the compiler lets the bound itself through
        raise UnsupportedError(f"the keyword {key} is not supported for a range narrower than 1", f"{path}.{key}")
    required = schema.get("required", [])
    if not _is_list(required) or not all(isinstance(name, str) for name in required):
        raise RequestError("must be a list of names", f"{path}.required")
    if len(schema.get("properties") or ()) > MAX_PROPERTIES:
        raise UnsupportedError(f"more than {MAX_PROPERTIES} properties are not supported", f"{path}.properties")
    # The compiler counts a name that is written twice as two.
    if schema.get("minProperties", 0) > max(1, len(set(required))):
        raise UnsupportedError(
            "the keyword minProperties is not supported beyond what is required", f"{path}.minProperties"
        )
    if "enum" in schema and (not _is_list(schema["enum"]) or not schema["enum"]):
        raise RequestError("must be a list, not empty", f"{path}.enum")
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise UnsupportedError("the keyword $ref is supported within the schema only: #/...", f"{path}.$ref")


def _apart(a: Any, b: Any) -> bool:
    """Whether it is plain that no value fits both: by type, by value, or by a property that both require."""
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return a is False or b is False
    one, two = _values(a), _values(b)
    if one is not None and two is not None:
        return not one & two
    kinds, others = _kinds(a), _kinds(b)
    if kinds and others and not kinds & others and not {"integer", "number"} <= kinds | others:
        return True
    if kinds != {"object"} or others != {"object"}:
        return False
    both = set(a.get("required", ())) & set(b.get("required", ()))
    mine, yours = a.get("properties", {}), b.get("properties", {})
    return any(name in mine and name in yours and _by_value(mine[name], yours[name]) for name in both)


def _by_value(a: Any, b: Any) -> bool:
    one = _values(a) if isinstance(a, Mapping) else None
    two = _values(b) if isinstance(b, Mapping) else None
    return one is not None and two is not None and not one & two


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """All that fit, as text; None where that is not given. 1 and 1.0 are one value, hence only plain ones count."""
    given = [schema["const"]] if "const" in schema else schema.get("enum")
    if given is None or not all(value is None or isinstance(value, str | bool | int) for value in given):
        return None
    return {json.dumps(value) for value in given}


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    given = schema.get("type", [])
    return {given} if isinstance(given, str) else {kind for kind in given if isinstance(kind, str)}


def _check_reach(schema: Mapping[str, Any], param: str) -> None:
    """Bound how deep a walk along references can go: all that they lead to, one behind the other."""
    reach = _depth(schema)
    for target in {value for key, value in _entries(schema) if key == "$ref" and isinstance(value, str)}:
        reach += 1 + _depth(_at(schema, target))
    if reach > MAX_REACH:
        raise UnsupportedError(f"the schema is too deep: {reach:,} levels, references included, of {MAX_REACH}", param)


def _at(schema: Any, reference: str) -> Any:
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        schema = schema.get(name) if isinstance(schema, Mapping) else None
    return schema


def _depth(value: Any) -> int:
    levels = 0
    level = [value]
    while level := [part for item in level for part in _inside(item)]:
        levels += 1
    return levels


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    for part in _inside(value):
        yield from _entries(part)


def _inside(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if _is_list(value) else ()


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
