"""The form of an answer's content: text, any JSON object, or JSON that follows a schema."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeGuard

from pydantic import BaseModel, BeforeValidator, Field, Tag, ValidationInfo, field_validator
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticCustomError

from pocketvlm.messages.base import Flag, Frozen, JsonObject, Text, by_field

_Schema = Annotated[JsonObject | None, Field(alias="schema")]
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class TextFormat(Frozen):
    type: Literal["text"]

    is_strict: ClassVar[bool] = False

    def content_schema(self) -> None:
        """Return None: the content is free text."""


class JsonObjectFormat(Frozen):
    """Any JSON object, or one that follows a JSON Schema: huggingface_hub's `value`, llama.cpp's `schema`.

    Text Generation Inference called it json.
    """

    is_strict: ClassVar[bool] = False

    type: Literal["json_object", "json"]
    value: JsonObject | None = None
    schema_: _Schema = None

    def content_schema(self) -> tuple[dict[str, Any], str]:
        """Return the schema, and its path within the format."""
        if self.value is not None:
            return self.value, "value"
        return (ANY_OBJECT, "type") if self.schema_ is None else (self.schema_, "schema")


class JsonSchema(Frozen):
    name: Text | None = None
    description: Text | None = None
    strict: Flag | None = None
    schema_: Annotated[_Schema, Field(validate_default=True)] = None

    @field_validator("schema_")
    @classmethod
    def _named_or_given(cls, value: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
        if value is None and info.data.get("name") is None:
            raise PydanticCustomError("missing", "is required")
        return value


class JsonSchemaFormat(Frozen):
    """`json_schema`, or the fields of it in the format itself, as in Responses and llama.cpp."""

    type: Literal["json_schema"]
    name: Text | None = None
    description: Text | None = None
    strict: Flag | None = None
    schema_: _Schema = None
    json_schema: Annotated[JsonSchema | None, Field(validate_default=True)] = None

    @field_validator("json_schema")
    @classmethod
    def _given(cls, value: JsonSchema | None, info: ValidationInfo) -> JsonSchema | None:
        if value is None and info.data.get("schema_") is None:
            raise PydanticCustomError("missing", "is required")
        return value

    def content_schema(self) -> tuple[dict[str, Any], str]:
        """Return the schema, and its path within the format."""
        if self.json_schema is None:
            return self.schema_ or ANY_OBJECT, "schema"
        schema = self.json_schema.schema_
        return ANY_OBJECT if schema is None else schema, "json_schema.schema"

    @property
    def is_strict(self) -> bool:
        """Whether what cannot be enforced is an error."""
        return bool(self.strict if self.json_schema is None else self.json_schema.strict)


def is_model_class(value: object) -> TypeGuard[type[BaseModel]]:
    """Return whether a value is a class of pydantic's, whose instances answers can be."""
    return isinstance(value, type) and issubclass(value, BaseModel)


def _of_class(value: object) -> object:
    """Return the format of a class: its schema. What that cannot say, the class checks itself."""
    if not is_model_class(value):
        return value
    try:
        schema = value.model_json_schema()
    except PydanticUserError as error:
        raise ValueError(f"{value.__name__} has no JSON Schema: {error.message}") from None
    return {"type": "json_schema", "json_schema": {"name": value.__name__, "schema": schema}}


_Format = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonObjectFormat, Tag("<json>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    by_field("type", ("text", "json_object", "json_schema")),
]
ResponseFormat = Annotated[_Format, BeforeValidator(_of_class, json_schema_input_type=_Format)]
