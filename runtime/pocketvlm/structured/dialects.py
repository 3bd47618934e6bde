"""Schemas of older drafts, OpenAPI, Gemini, and of people -> the keywords of draft 2020-12, object by object. Pure.

Null is the absence of a keyword, as Go and Java write it. What cannot be understood is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = "dict[str, Any]"
LeaveOut = Callable[[str], None]  # gets the keyword

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
# Names of types in programming languages, in lower case, as people write them.
_OTHER_TYPES = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "decimal": "number",
    "bool": "boolean",
    "dict": "object",
    "map": "object",
    "list": "array",
    "tuple": "array",
    "none": "null",
    "nonetype": "null",
}
NULLABLE = ("nullable", "x-nullable")  # OpenAPI 3.0 and 2.0
_ANY_TYPE = ("any", "type_unspecified", "")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_TEXTS = ("$ref", "format", "pattern")
_SCHEMAS = ("items", "additionalProperties", "propertyNames")


def modern(schema: Mapping[str, Any], leave_out: LeaveOut) -> Schema:
    """Return a schema object whose keywords have today's names and types. `leave_out` gets those without meaning.

    The schemas within it stay as they are.
    """
    result = {key: value for key, value in schema.items() if value is not None or key == "const"}
    if "divisibleBy" in result:  # draft 3
        result.setdefault("multipleOf", result.pop("divisibleBy"))
    if isinstance(result.get("required"), bool):  # draft 3: about this schema, not about its properties
        del result["required"]
    for key in [key for key in result if key in _CHECKS]:
        result[key] = _CHECKS[key](result[key])
        if result[key] is None:
            del result[key]
            leave_out(key)
    _move_type(result, schema, leave_out)
    _move_exclusive(result)
    _move_tuple(result)
    _move_nullable(result)
    return result


def is_required_by_draft_3(schema: Any) -> bool:
    """Whether a property's own schema says that it is required."""
    return isinstance(schema, Mapping) and schema.get("required") is True


def type_names(value: Any) -> set[str]:
    """Return the names of the types that a JSON value has."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int | float):
        return {"integer", "number"} if value == int(value) else {"number"}
    if value is None:
        return {"null"}
    return {"string" if isinstance(value, str) else "object" if isinstance(value, Mapping) else "array"}


def _number(value: Any) -> Any:
    if isinstance(value, str):  # Gemini writes 64 bit numbers as strings
        try:
            value = float(value) if "." in value or "e" in value.lower() else int(value)
        except ValueError:
            return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    return value if is_number else None


def _number_or_flag(value: Any) -> Any:
    return value if isinstance(value, bool) else _number(value)


def _divisor(value: Any) -> Any:
    value = _number(value)
    return value if value is not None and value > 0 else None


def _count(value: Any) -> int | None:
    value = _number(value)
    return int(value) if value is not None and value >= 0 and value == int(value) else None


def _list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) and value else None


def _schemas(value: Any) -> Any:
    return _list([part for part in value if part is not None]) if isinstance(value, list | tuple) else None


def _names(value: Any) -> list[str] | None:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | tuple) else None


def _object(value: Any) -> Any:
    return value if isinstance(value, Mapping) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _schema(value: Any) -> Any:
    return value if isinstance(value, Mapping | bool) else None


def _schema_or_list(value: Any) -> Any:
    return value if isinstance(value, Mapping | bool | list | tuple) else None


_CHECKS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_NUMBERS, _number),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _number_or_flag),
    "multipleOf": _divisor,
    **dict.fromkeys(_COUNTS, _count),
    **dict.fromkeys(_LISTS, _schemas),
    **dict.fromkeys(_MAPS, _object),
    **dict.fromkeys(_TEXTS, _text),
    **dict.fromkeys(_SCHEMAS, _schema),
    "items": _schema_or_list,
    "enum": _list,
    "required": _names,
}


def _move_type(result: Schema, schema: Mapping[str, Any], leave_out: LeaveOut) -> None:
    """Make `type` a name or a list of names; schemas in its list (draft 3) become anyOf."""
    if "type" not in result:
        return
    given = result.pop("type")
    names: list[str] = []
    schemas: list[Any] = []
    for item in given if isinstance(given, list | tuple) else [given]:
        name = item.lower() if isinstance(item, str) else None
        if name in _ANY_TYPE:
            return
        if name is not None and (known := name if name in TYPES else _OTHER_TYPES.get(name)):
            names.append(known)
        elif isinstance(item, Mapping):
            schemas.append(item)
        else:
            leave_out("type")
            return
    if schemas:
        result["allOf"] = [*result.get("allOf", ()), {"anyOf": [*({"type": name} for name in names), *schemas]}]
    elif names:
        # In its place: the order of keywords decides the order of properties.
        keys = [key for key in schema if key in result or key == "type"]
        later = {key: result.pop(key) for key in keys[keys.index("type") + 1 :] if key in result}
        result["type"] = names[0] if len(names) == 1 else list(dict.fromkeys(names))
        result.update(later)


def _move_exclusive(result: Schema) -> None:
    """`exclusiveMinimum: true` (draft 4, OpenAPI 3.0) says of `minimum` that it is exclusive."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(flag := result.get(exclusive), bool):
            del result[exclusive]
            if flag and bound in result:
                result[exclusive] = result.pop(bound)


def _move_tuple(result: Schema) -> None:
    """`items` as a list (before draft 2020-12) is `prefixItems`, and `additionalItems` then `items`."""
    rest = result.pop("additionalItems", None)
    if isinstance(result.get("items"), list | tuple):
        result.setdefault("prefixItems", result.pop("items"))
        if not result["prefixItems"]:
            del result["prefixItems"]
        if isinstance(rest, Mapping | bool):
            result["items"] = rest


def _move_nullable(result: Schema) -> None:
    """`nullable: true` (OpenAPI 3.0) adds null to what is allowed."""
    flags = [result.pop(key, False) for key in NULLABLE]
    if True not in flags:
        return
    types = result.get("type")
    names = [types] if isinstance(types, str) else types
    simple = not {"const", "$ref", "anyOf", "allOf", "oneOf"} & set(result)
    if simple and names:
        result["type"] = list(dict.fromkeys([*names, "null"]))
        if "enum" in result and None not in result["enum"]:
            result["enum"] = [*result["enum"], None]
    elif set(result) & _ASSERTIONS:
        inner = {key: result.pop(key) for key in list(result) if key not in ("$defs", "definitions")}
        result["anyOf"] = [inner, {"type": "null"}]


_ASSERTIONS = {*_CHECKS, "const", "not", "if"} - {"$defs", "definitions"}
