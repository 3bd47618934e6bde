"""The tools of a request, and which of them the answer may or must call."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, ModelWrapValidatorHandler, PrivateAttr, Tag, model_validator

from pocketvlm.errors import shortened
from pocketvlm.messages.base import AlsoTakes, Flag, Frozen, JsonObject, Open, Text
from pocketvlm.messages.calls import FunctionType
from pocketvlm.system.suggestions import did_you_mean

# Names stand in prompts and grammars as they are, between quotes or tags.
FunctionName = Annotated[str, Field(pattern=r'^[^"\\<>{}\[\]\x00-\x1f\x7f]{1,256}$')]
_COMPARED = 50  # fields of a function whose names are compared with the known ones, which takes time
_SCHEMA_KEYS = ("parameters", "input_schema", "inputSchema")  # OpenAI's; Anthropic's and MCP's
_OF_FUNCTION = ("description", "parameters", "strict")


class FunctionDefinition(Open):
    """`parameters` is a JSON Schema. Unknown fields are ignored, unless they look like a misspelt one of these."""

    name: FunctionName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: Flag | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_misspelling(cls, value: object) -> object:
        known = [*cls.model_fields]
        for key in islice(value, _COMPARED) if isinstance(value, Mapping) else ():
            if key not in known and (suggestion := did_you_mean(str(key), known)):
                raise ValueError(f"{shortened(key)}: unknown field{suggestion}")
        return value


class Tool(Open):
    """A function. Other APIs have its fields in the tool itself: Responses, Anthropic, MCP."""

    type: FunctionType = "function"
    function: FunctionDefinition
    _parameters_field: str = PrivateAttr("function.parameters")

    @model_validator(mode="wrap")
    @classmethod
    def _known_form(cls, value: Any, handler: ModelWrapValidatorHandler[Tool]) -> Tool:
        if not isinstance(value, Mapping):
            return handler(value)
        function = value.get("function")
        if isinstance(function, Mapping):  # what belongs into it may stand next to it
            next_to_it = {name: value[name] for name in _OF_FUNCTION if name in value and function.get(name) is None}
            tool = handler({**value, "function": {**function, **next_to_it}})
            if next_to_it.get("parameters") is not None:
                tool._parameters_field = "parameters"
            return tool
        if "function" in value or "name" not in value:
            return handler(value)
        key = next((key for key in _SCHEMA_KEYS if value.get(key) is not None), "parameters")
        function = {name: field for name, field in value.items() if name not in ("type", *_SCHEMA_KEYS)}
        tool = handler({"type": value.get("type"), "function": {**function, "parameters": value.get(key)}})
        tool._parameters_field = key
        return tool

    @property
    def parameters_field(self) -> str:
        """The path of the function's parameters within the tool, for errors."""
        return self._parameters_field


_FLAT = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, **{key: {"type": ["object", "null"]} for key in _SCHEMA_KEYS}},
}
Tools = tuple[Annotated[Tool, AlsoTakes(_FLAT)], ...]


class FunctionReference(Open):
    name: FunctionName


class NamedTool(Open):
    type: Literal["function"] = "function"
    function: FunctionReference


class AllowedToolList(Open):
    mode: Literal["auto", "required"]
    tools: Annotated[tuple[NamedTool, ...], Field(min_length=1)]


class AllowedTools(Open):
    """All tools stay in the prompt, which stays cached; the answer may call these."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolList


_CHOICES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


def _known_choice(choice: Any) -> Any:
    """Return the choice in OpenAI's chat completions form; Responses and Anthropic have others."""
    if isinstance(choice, str):
        return _CHOICES.get(choice, choice)
    if not isinstance(choice, Mapping):
        return choice
    kind = choice.get("type")
    if isinstance(kind, str) and kind in _CHOICES:
        return _CHOICES[kind]
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        if isinstance(allowed, Mapping) and isinstance(tools := allowed.get("tools"), list | tuple):
            allowed = {**allowed, "tools": [_nested(tool) for tool in tools]}
        return {"type": kind, "allowed_tools": allowed}
    return _nested(choice)


def _nested(tool: Any) -> Any:
    if isinstance(tool, Mapping) and "name" in tool and "function" not in tool:
        kind = tool.get("type")
        return {"type": "function" if kind in (None, "tool") else kind, "function": {"name": tool["name"]}}
    return tool


def _choice_form(choice: Any) -> str | None:
    """Return the tag of a choice's class, None for what is no choice."""
    if isinstance(choice, str):
        return "<string>"
    kind = choice.get("type") if isinstance(choice, Mapping) else getattr(choice, "type", None)
    if isinstance(choice, Mapping | Frozen):
        return "<allowed_tools>" if kind == "allowed_tools" else "<object>"
    return None


_OneChoice = (
    Annotated[Literal["auto", "none", "required"], Tag("<string>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")]
    | Annotated[NamedTool, Tag("<object>")]
)
ToolChoice = Annotated[
    _OneChoice,
    Discriminator(
        _choice_form,
        custom_error_type="wrong_form",
        custom_error_message="must be auto, none, required or a function",
    ),
    BeforeValidator(
        _known_choice,
        json_schema_input_type=Literal["auto", "none", "required", "any"] | AllowedTools | NamedTool | dict[str, Any],
    ),
]


def names_in(choice: Any) -> tuple[str, ...] | None:
    """Return the names of the functions that a choice allows; None for all."""
    if isinstance(choice, NamedTool):
        return (choice.function.name,)
    if isinstance(choice, AllowedTools):
        return tuple(tool.function.name for tool in choice.allowed_tools.tools)
    return None


def requires_call(choice: Any) -> bool:
    """Return whether the answer must be a call."""
    if isinstance(choice, AllowedTools):
        return choice.allowed_tools.mode == "required"
    return isinstance(choice, NamedTool) or choice == "required"
