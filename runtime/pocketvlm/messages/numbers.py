"""Numbers as clients write them: JavaScript has one kind, forms send text, and llama.cpp's -1 means the default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict
from pydantic_core import CoreSchema, core_schema

_TEXT = r"^-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?$"
_LARGEST_INTEGER = 2**53  # of JavaScript's numbers


def as_number(value: object) -> object:
    """Return "0.7" as 0.7, and 5.0 and "5" as 5; everything else as it is, so that the field's own type judges it."""
    if isinstance(value, str) and re.match(_TEXT, value.strip()):
        text = value.strip()
        value = int(text) if text.lstrip("-").isdigit() else float(text)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_INTEGER:
        return int(value)
    return value


class AnyNumber:
    """Annotates a strict number with limits: the field takes numbers as `as_number` reads them, too."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(as_number, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": _TEXT}]}


class DefaultAt:
    """Annotates a type with None: one of these values means None, the default."""

    def __init__(self, *values: int) -> None:
        self._values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def none_or_value(value: object) -> object:
            number = as_number(value)
            return None if isinstance(number, int) and number in self._values else value

        return core_schema.no_info_before_validator_function(none_or_value, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"enum": list(self._values)}]}


Count = Annotated[int, Strict(), Field(gt=0), AnyNumber()]
Limit = Annotated[Count | None, DefaultAt(-1, -2)]  # of tokens; llama.cpp's -2 means up to the end of the context


def _no_list(value: object) -> object:
    return None if isinstance(value, list | tuple) and not value else value


_Bias = Annotated[float, Strict(), Field(ge=-100, le=100), AnyNumber()]
# Hugging Face's schema has a list there, which only as an empty one can mean anything.
LogitBias = Annotated[
    Mapping[int, _Bias] | None,
    BeforeValidator(
        _no_list, json_schema_input_type=Mapping[int, _Bias] | Annotated[list[Any], Field(max_length=0)] | None
    ),
]
