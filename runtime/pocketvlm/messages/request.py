"""A chat request: its messages, how to sample, and the form of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, Tag, ValidationError, ValidationInfo, field_validator

from pocketvlm.errors import RequestError
from pocketvlm.messages.base import Count, Flag, Frozen, JsonObject, Text, by_field, by_form, request_error
from pocketvlm.messages.chat import Message

MAX_STOPS = 4
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]

# ---- the form of the answer


class TextFormat(Frozen):
    type: Literal["text"]


class JsonObjectFormat(Frozen):
    """Any JSON object. With `value`, one that follows this JSON Schema, as huggingface_hub sends it."""

    type: Literal["json_object"]
    value: JsonObject | None = None


class JsonSchema(Frozen):
    name: Text
    description: Text | None = None
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    strict: Flag | None = None


class JsonSchemaFormat(Frozen):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JsonObjectFormat, Tag("<json_object>")]
    | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
    by_field("type", ("text", "json_object", "json_schema")),
]


# ---- tools


class FunctionDefinition(Frozen):
    """`parameters` is a JSON Schema."""

    name: FunctionName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: Flag | None = None


class Tool(Frozen):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionReference(Frozen):
    name: FunctionName


class NamedTool(Frozen):
    type: Literal["function"] = "function"
    function: FunctionReference


_TOOL_CHOICES = "must be auto, none, required or a function"
ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("<string>")] | Annotated[NamedTool, Tag("<object>")],
    by_form(_TOOL_CHOICES),
]


# ---- request


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_Stop = Annotated[str, Field(min_length=1)]
_Stops = Annotated[tuple[_Stop, ...], Field(max_length=MAX_STOPS)]


class StreamOptions(Frozen):
    include_usage: Flag | None = None


class ChatRequest(Frozen):
    """A chat request. None means the default of every field.

    Sampling follows llama.cpp's chain: penalties, top-k, top-p, min-p, temperature, draw. Temperature 0 is greedy.
    JSON of a schema or of a tool call is compact; `json_whitespace` "pretty" allows line breaks and indentation.
    With `ignore_eos`, as in vLLM, the answer continues after its end up to its limit: for measurements.
    """

    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    model: str | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Strict(), Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Strict(), Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Strict(), Field(ge=0)] | None = None
    min_p: Annotated[float, Strict(), Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**63)] | None = None
    stop: Annotated[
        Annotated[tuple[Text, ...], Field(max_length=MAX_STOPS)] | None,
        BeforeValidator(_listed, json_schema_input_type=_Stops | _Stop | None),
    ] = None
    n: Annotated[int, Strict(), Field(ge=1, le=16)] | None = None
    frequency_penalty: Annotated[float, Strict(), Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Strict(), Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Strict(), Field(gt=0, le=10)] | None = None
    logit_bias: Mapping[int, Annotated[float, Strict(), Field(ge=-100, le=100)]] | None = None
    ignore_eos: Flag | None = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[int, Strict(), Field(ge=0, le=20)] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    json_whitespace: Literal["compact", "pretty"] | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    tool_prompt: Text | None = None
    parallel_tool_calls: Flag | None = None
    reasoning_effort: Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")] | None = None
    user: str | None = None
    metadata: Mapping[str, str] | None = None

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and "" in value:
            raise ValueError("a stop string must not be empty")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _among_tools(cls, value: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        names = {tool.function.name for tool in info.data.get("tools") or ()}
        if isinstance(value, NamedTool) and value.function.name not in names:
            raise ValueError(f"there is no function {value.function.name} in tools")
        if value == "required" and not names:
            raise ValueError("required needs tools")
        return value

    @classmethod
    def parse(cls, messages: Sequence[Any], **fields: Any) -> ChatRequest:
        """Validate a request. Raises RequestError with the path of the first field that is wrong."""
        return cls.parse_object({"messages": messages, **fields})

    @classmethod
    def parse_object(cls, body: Mapping[str, Any]) -> ChatRequest:
        """Validate a request that is one object, such as the JSON of an HTTP request."""
        if isinstance(body.get("messages"), str):
            raise RequestError("must be a list of messages", "messages")
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise request_error(error) from None

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer; None: up to the end of the context."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)
