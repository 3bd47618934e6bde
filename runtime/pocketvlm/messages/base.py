"""What the classes of the schema share: frozen values, text, choices between types, and readable errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Strict, ValidationError

from pocketvlm.errors import RequestError

Count = Annotated[int, Strict(), Field(gt=0)]
Flag = Annotated[bool, Strict()]
JSON_DEPTH = 64  # levels of plain JSON in a request, such as a tool's parameters


def _encodable(value: str) -> str:
    """Refuse half of a surrogate pair: JSON can escape it, but no tokenizer takes it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair; send the text as UTF-8") from None
    return value


def _plain_json(value: Mapping[str, Any]) -> Mapping[str, Any]:
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


Text = Annotated[str, AfterValidator(_encodable)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_plain_json)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


def request_error(error: ValidationError) -> RequestError:
    """Return the first error with the path of its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = [str(step) for step in first["loc"] if not str(step).startswith(("<", "[key]"))]
    if first["type"].startswith("unknown_"):  # a discriminator's; its path ends before the field
        path.append(first["type"].removeprefix("unknown_"))
    template = _MESSAGES.get(first["type"])
    message = template.format(**first.get("ctx", {})) if template else first["msg"].removeprefix("Value error, ")
    return RequestError(message, ".".join(path) or None)


# By pydantic's types of errors, for those whose own messages speak of Python's types or of "input".
_MESSAGES = {
    "extra_forbidden": "unknown field",
    "missing": "is required",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "none_required": "must be null",
    "finite_number": "must be a finite number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_long": "must have at most {max_length} items",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must match {pattern}",
    "int_parsing": "must be an integer",
}
