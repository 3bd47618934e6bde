"""What the classes of the schema share: frozen values, text, plain JSON, and choices between types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

Flag = Annotated[bool, Strict()]
T = TypeVar("T")
Omitted = Annotated[T | None, Field(exclude_if=lambda value: value is None)]  # left out of the JSON where None
JSON_DEPTH = 64  # levels of plain JSON in a request, such as a tool's parameters


def is_encodable(value: str) -> bool:
    """Return whether UTF-8 can write the text: JSON can escape half of a surrogate pair, but no tokenizer takes it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair; send the text as UTF-8") from None
    return value


def plain_json(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse what strict JSON parsers refuse: numbers that are not finite, and values nested too deep."""
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                deeper += [*item.keys(), *item.values()]
            elif isinstance(item, str):
                _encodable(item)
            elif isinstance(item, Sequence):
                deeper += item
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError("contains a number that is not finite")
        if not deeper:
            return value
        level = deeper
    raise ValueError(f"is nested too deep; at most {JSON_DEPTH} levels are supported")


def empty_for_null(value: object) -> object:
    """Return "" for null, which many clients make of ""."""
    return "" if value is None else value


def _scalar(value: object) -> object:
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    if value is not None and not isinstance(value, bool | int | float):
        raise ValueError("must be a string, a number, true, false or null")
    return value


Text = Annotated[str, AfterValidator(_encodable)]
Scalar = Annotated[Any, AfterValidator(_scalar), WithJsonSchema({"type": ["string", "number", "boolean", "null"]})]
TextOrNull = Annotated[Text, BeforeValidator(empty_for_null, json_schema_input_type=Text | None)]
JsonObject = Annotated[dict[str, Any], AfterValidator(plain_json)]

Dropped = Annotated[None, BeforeValidator(lambda _: None, json_schema_input_type=Any)]  # a field that is always None


class Frozen(BaseModel):
    """Refuses unknown fields: one that is misspelt would change nothing, silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Open(Frozen):
    """Ignores unknown fields: histories come from other servers, and who sends them cannot edit them."""

    model_config = ConfigDict(extra="ignore")


class AlsoTakes:
    """Annotates a type with more forms of it, as JSON schemas: a validator turns them into the one that is declared."""

    def __init__(self, *schemas: dict[str, Any]) -> None:
        self._schemas = schemas

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), *self._schemas]}


def fields_of(value: object) -> object:
    """Return a message or part as a dict of its own, also where it is another library's model; others as they are."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, BaseModel) and not isinstance(value, Frozen):
        return value.model_dump(exclude_none=True)
    return value


def by_field(key: str, tags: tuple[str, ...]) -> Discriminator:
    """Return a discriminator by the field `key`. Tags are in angle brackets, so that `request_error` can drop them."""

    def tag(value: Any) -> str:
        return f"<{value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)}>"

    message = f"{key} must be one of {', '.join(tags)}"
    return Discriminator(tag, custom_error_type=f"unknown_{key}", custom_error_message=message)


def by_form(message: str) -> Discriminator:
    """Return a discriminator between <string>, <object> and <list>. `message` is the error for anything else."""

    def tag(value: Any) -> str | None:
        if isinstance(value, str):
            return "<string>"
        if isinstance(value, Mapping | BaseModel):
            return "<object>"
        return "<list>" if isinstance(value, Sequence) else None

    return Discriminator(tag, custom_error_type="wrong_form", custom_error_message=message)
