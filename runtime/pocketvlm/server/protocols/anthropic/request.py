"""Requests of Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, Tag, field_validator

from pocketvlm.errors import RequestError, shortened
from pocketvlm.messages.base import Flag, JsonObject, Open, Text, by_field, by_form
from pocketvlm.messages.field_errors import validated
from pocketvlm.messages.ignored import Ignored
from pocketvlm.messages.numbers import AnyNumber, Count, DefaultAt
from pocketvlm.messages.tools import FunctionName
from pocketvlm.server.protocols.anthropic.blocks import AnswerBlock, TextBlock, UserBlock
from pocketvlm.system.suggestions import did_you_mean

_MAX_STOPS = 128  # Anthropic states no limit
_COMPARED = 50  # fields whose names are compared with the known ones, which takes time
_FORMS = by_form("must be a string or a list of blocks")


class UserMessage(Open):
    role: Literal["user"]
    content: Annotated[Annotated[Text, Tag("<string>")] | Annotated[tuple[UserBlock, ...], Tag("<list>")], _FORMS]


class AssistantMessage(Open):
    role: Literal["assistant"]
    content: Annotated[Annotated[Text, Tag("<string>")] | Annotated[tuple[AnswerBlock, ...], Tag("<list>")], _FORMS]


Texts = Annotated[Annotated[Text, Tag("<string>")] | Annotated[tuple[TextBlock, ...], Tag("<list>")], _FORMS]


class SystemMessage(Open):
    """An instruction within the conversation."""

    role: Literal["system"]
    content: Texts


Message = Annotated[
    Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[SystemMessage, Tag("<system>")],
    by_field("role", ("user", "assistant", "system")),
]


def _custom(kind: object) -> object:
    if isinstance(kind, str) and kind != "custom":
        raise ValueError(f"{shortened(kind)} is a tool of Anthropic's; describe one with name and input_schema instead")
    return "custom" if kind is None else kind


class Tool(Open):
    """A tool that the client runs. With `defer_loading`, the model knows it once a result refers to it."""

    type: Annotated[Literal["custom"], BeforeValidator(_custom, json_schema_input_type=Literal["custom"] | None)] = (
        "custom"
    )
    name: FunctionName
    description: Text | None = None
    input_schema: JsonObject
    strict: Flag | None = None
    defer_loading: Flag | None = None


class ToolChoice(Open):
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: Flag | None = None

    @field_validator("name")
    @classmethod
    def _named(cls, value: str | None, info: Any) -> str | None:
        return value if info.data.get("type") == "tool" else None


class Thinking(Open):
    """`budget_tokens` is not enforced. With `display` "omitted" the answer has thoughts without their text."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Open):
    type: Literal["json_schema"]
    schema_: Annotated[JsonObject, Field(alias="schema")]


class OutputConfig(Open):
    """`effort` counts where thinking is on."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessagesBody(Open):
    """A request of Anthropic's Messages API. None means the default.

    Without `max_tokens` the answer may go on to the end of the context, and without `temperature` it is greedy.
    Unknown fields are ignored, because clients send those of the newest betas, unless they look like a misspelt one.
    """

    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    model: Text | None = None
    max_tokens: Count | None = None
    system: Texts | None = None
    temperature: Annotated[float, Strict(), Field(ge=0, le=1), AnyNumber()] | None = None
    top_p: Annotated[float, Strict(), Field(ge=0, le=1), AnyNumber()] | None = None
    top_k: Annotated[Annotated[int, Strict(), Field(ge=0), AnyNumber()] | None, DefaultAt(-1)] = None
    stop_sequences: Annotated[tuple[Text, ...], Field(max_length=_MAX_STOPS)] | None = None
    stream: Flag | None = None
    tools: tuple[Tool, ...] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    container: Any = None
    mcp_servers: Any = None
    # These change nothing here.
    metadata: Ignored = None
    service_tier: Ignored = None
    cache_control: Ignored = None
    context_management: Ignored = None
    diagnostics: Ignored = None
    inference_geo: Ignored = None
    speed: Ignored = None
    betas: Ignored = None

    @field_validator("stop_sequences")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and "" in value:
            raise ValueError("a stop sequence must not be empty")
        return value

    @field_validator("container", "mcp_servers")
    @classmethod
    def _not_here(cls, value: Any) -> Any:
        if value:
            raise ValueError("is not supported: tools run on the client, not on this server")
        return None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> MessagesBody:
        """Validate a body. Raises RequestError with the path of the first field that is wrong."""
        known = [*cls.model_fields]
        for name in islice(body, _COMPARED):
            if name not in known and (suggestion := did_you_mean(name, known)):
                raise RequestError(f"unknown field{suggestion}", name)
        return validated(cls, body)
