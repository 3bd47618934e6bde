"""Errors of validation as RequestErrors: the path of the first wrong field, and what it should have been."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from pocketvlm.errors import RequestError
from pocketvlm.system.suggestions import did_you_mean

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], value: Mapping[str, Any]) -> M:
    """Return `value` as a `model`. Raises RequestError with the path of the first wrong field."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise request_error(error, model) from None


def request_error(error: ValidationError, model: type[BaseModel]) -> RequestError:
    """Return the first error of validating `model`, with the path of its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    # pydantic uses the alias of a field in a path, except for one that is missing.
    path = ["schema" if step == "schema_" else str(step) for step in first["loc"] if not _is_tag(step)]
    if first["type"].startswith("unknown_"):  # a discriminator's; its path ends before the field
        path.append(first["type"].removeprefix("unknown_"))
    template = _MESSAGES.get(first["type"])
    message = template.format(**first.get("ctx", {})) if template else first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message += did_you_mean(path[-1], names_at(model, first["loc"][:-1]))
    return RequestError(message, ".".join(path) or None)


def names_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the names of the fields that an object at this place of a request may have."""
    models = {model}
    for step in location:
        if isinstance(step, str) and not _is_tag(step):
            models = {
                inner
                for outer in models
                for name, field in outer.model_fields.items()
                if step in (name, field.alias)
                for inner in _models(field.annotation)
            }
    return sorted({field.alias or name for one in models for name, field in one.model_fields.items()})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _is_tag(step: str | int) -> bool:
    return str(step).startswith(("<", "[key]"))


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
