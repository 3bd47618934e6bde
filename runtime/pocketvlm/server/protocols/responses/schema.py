"""The request: OpenAI's Responses as clients write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from pocketvlm.messages.base import Flag, Frozen, JsonObject, Open, Scalar, Text, by_form
from pocketvlm.messages.ignored import Ignored
from pocketvlm.messages.numbers import AnyNumber, Limit
from pocketvlm.server.protocols.responses.items import Item

_Input = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[tuple[Item, ...], Tag("<list>")],
    by_form("must be a string or a list of items"),
]


class ReasoningOptions(Open):
    """With `summary` set, the thought is answered as the item's summary, which is what many clients show."""

    effort: Text | None = None
    summary: Text | None = None


class TextOptions(Frozen):
    format: JsonObject | None = None
    verbosity: Ignored = None


class ResponseStreamOptions(Open):
    include_obfuscation: Any = None


_Choice = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[JsonObject, Tag("<object>")],
    by_form("must be auto, none, required or a tool"),
]
_AsInChat = Annotated[Any, Field(description="As in chat completions.", repr=False)]


class CreateResponse(Frozen):
    """A request of OpenAI's Responses. None means the default of every field.

    `tools` that only OpenAI can run are left out and named in the answer's `notes`. `store` is true by default: the
    answer is then kept in memory for a while, for `previous_response_id`.
    """

    input: _Input | None = None
    model: Text | None = None
    instructions: Text | None = None
    previous_response_id: Text | None = None
    store: Flag | None = None
    stream: Flag | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: tuple[JsonObject, ...] | None = None
    tool_choice: _Choice | None = None
    parallel_tool_calls: Flag | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: tuple[Text, ...] | None = None
    max_output_tokens: Limit = None
    temperature: Annotated[float, Strict(), Field(ge=0, le=2), AnyNumber()] | None = None
    top_p: Annotated[float, Strict(), Field(ge=0, le=1), AnyNumber()] | None = None
    top_logprobs: Annotated[int, Strict(), Field(ge=0, le=20), AnyNumber()] | None = None
    metadata: Mapping[str, Scalar] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: Flag | None = None
    conversation: Any = None
    prompt: Any = None
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    # Extensions
    seed: _AsInChat = None
    stop: _AsInChat = None
    top_k: _AsInChat = None
    min_p: _AsInChat = None
    repeat_penalty: _AsInChat = None
    repetition_penalty: _AsInChat = None
    frequency_penalty: _AsInChat = None
    presence_penalty: _AsInChat = None
    logit_bias: _AsInChat = None
    min_tokens: _AsInChat = None
    json_whitespace: _AsInChat = None
    tool_prompt: _AsInChat = None
    enable_thinking: _AsInChat = None
    chat_template_kwargs: _AsInChat = None
    # What changes nothing here
    max_tool_calls: Ignored = None
    service_tier: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None
    context_management: Ignored = None
    moderation: Ignored = None
    client_metadata: Ignored = None  # Codex

    @field_validator("background")
    @classmethod
    def _not_in_background(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("is not supported; answers are computed while the client waits, or streamed")
        return value

    @field_validator("conversation", "prompt")
    @classmethod
    def _not_kept_here(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            instead = "previous_response_id" if info.field_name == "conversation" else "instructions"
            raise PydanticCustomError("not_supported", "is not supported; use {instead}", {"instead": instead})
        return value

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    @property
    def wants_carried_thoughts(self) -> bool:
        return "reasoning.encrypted_content" in (self.include or ())

    @property
    def wants_summary(self) -> bool:
        return self.reasoning is not None and self.reasoning.summary not in (None, "none")


# The fields that are the same in a chat request.
SAME = (
    "model",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    *(name for name, field in CreateResponse.model_fields.items() if field.description == "As in chat completions."),
)
