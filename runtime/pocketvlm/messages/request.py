"""A chat request: its messages, how to sample, and the form of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationInfo,
    field_validator,
)

from pocketvlm.errors import RequestError, shortened
from pocketvlm.messages.base import Flag, Frozen, JsonObject, Open, Scalar, Text
from pocketvlm.messages.chat import AssistantMessage, Message
from pocketvlm.messages.field_errors import validated
from pocketvlm.messages.formats import ResponseFormat
from pocketvlm.messages.ignored import IgnoredFields
from pocketvlm.messages.numbers import AnyNumber, DefaultAt, Limit, LogitBias
from pocketvlm.messages.tools import ToolChoice, Tools, names_in

MAX_STOPS = 4
_EFFORT = r"^[a-z_]{1,32}$"
# What the request or the model itself sets for the template.
_TEMPLATE_NAMES = frozenset(
    "messages tools documents add_generation_prompt continue_final_message bos_token eos_token self".split()
)


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_Stop = Annotated[str, Field(min_length=1)]
_Stops = Annotated[tuple[_Stop, ...], Field(max_length=MAX_STOPS)]


class StreamOptions(Frozen):
    include_usage: Flag | None = None
    include_obfuscation: Any = None  # ignored: padding against observers of a network


class Reasoning(Open):
    """How OpenRouter and Responses spell `reasoning_effort`."""

    effort: Annotated[str, Field(pattern=_EFFORT)] | None = None
    enabled: Flag | None = None


class Thinking(Open):
    """How Anthropic and others switch thoughts."""

    type: Literal["enabled", "disabled", "adaptive"]


def _form(value: object) -> str:
    return "<word>" if isinstance(value, str) else "<switch>"


# How Ollama switches thoughts.
Think = Annotated[
    Annotated[Flag, Tag("<switch>")] | Annotated[str, Field(pattern=_EFFORT), Tag("<word>")], Discriminator(_form)
]


class ChatRequest(IgnoredFields):
    """A chat request. None means the default of every field.

    Sampling follows llama.cpp's chain: penalties, top-k, top-p, min-p, temperature, draw. Temperature 0 is greedy.
    `repetition_penalty` is another name of `repeat_penalty`, and `n_predict` of `max_tokens`. With `ignore_eos`, as in
    vLLM, the answer continues after its end up to its limit: for measurements. With `min_tokens` it cannot end before
    it has that many tokens, unless a schema ends it. With `skip_special_tokens` false, as in vLLM, control tokens that
    the model writes are content. `chat_template_kwargs` are variables of the model's template. JSON of a schema or of a
    tool call is compact; `json_whitespace` "pretty" allows line breaks and indentation.

    If the last message is an assistant's, the answer continues it, unless `continue_final_message` is false or
    `add_generation_prompt` is true. Without both fields, a message that is a whole answer, such as one with tool calls,
    is followed by a new answer. `add_generation_prompt` false after another message lets the model write what follows.
    """

    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    model: str | None = None
    max_tokens: Limit = None
    max_completion_tokens: Limit = None
    n_predict: Limit = None
    min_tokens: Annotated[int, Strict(), Field(ge=0), AnyNumber()] | None = None
    temperature: Annotated[float, Strict(), Field(ge=0, le=2), AnyNumber()] | None = None
    top_p: Annotated[float, Strict(), Field(ge=0, le=1), AnyNumber()] | None = None
    top_k: Annotated[Annotated[int, Strict(), Field(ge=0), AnyNumber()] | None, DefaultAt(-1)] = None
    min_p: Annotated[float, Strict(), Field(ge=0, le=1), AnyNumber()] | None = None
    seed: Annotated[Annotated[int, Strict(), Field(ge=0, lt=2**63), AnyNumber()] | None, DefaultAt(-1)] = None
    stop: Annotated[
        Annotated[tuple[Text, ...], Field(max_length=MAX_STOPS)] | None,
        BeforeValidator(_listed, json_schema_input_type=_Stops | _Stop | None),
    ] = None
    n: Annotated[int, Strict(), Field(ge=1, le=16), AnyNumber()] | None = None
    frequency_penalty: Annotated[float, Strict(), Field(ge=-2, le=2), AnyNumber()] | None = None
    presence_penalty: Annotated[float, Strict(), Field(ge=-2, le=2), AnyNumber()] | None = None
    repeat_penalty: Annotated[float, Strict(), Field(gt=0, le=10), AnyNumber()] | None = None
    repetition_penalty: Annotated[float, Strict(), Field(gt=0, le=10), AnyNumber()] | None = None
    logit_bias: LogitBias = None
    ignore_eos: Flag | None = None
    skip_special_tokens: Flag | None = None
    logprobs: Flag | None = None
    top_logprobs: Annotated[int, Strict(), Field(ge=0, le=20), AnyNumber()] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    json_whitespace: Literal["compact", "pretty"] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    tool_prompt: Text | None = None
    parallel_tool_calls: Flag | None = None
    reasoning_effort: Annotated[str, Field(pattern=_EFFORT)] | None = None
    reasoning: Reasoning | None = None
    thinking: Thinking | None = None
    enable_thinking: Flag | None = None
    think: Think | None = None
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: Flag | None = None
    continue_final_message: Flag | None = None
    function_call: Literal["none", "auto"] | None = None
    functions: tuple[Any, ...] | None = None
    modalities: tuple[Literal["text"], ...] | None = None
    user: str | None = None
    metadata: Mapping[str, Scalar] | None = None

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and "" in value:
            raise ValueError("a stop string must not be empty")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _among_tools(cls, value: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        names = {tool.function.name for tool in info.data.get("tools") or ()}
        for name in names_in(value) or ():
            if name not in names:
                raise ValueError(f"there is no function {shortened(name)} in tools")
        if value == "required" and not names:
            raise ValueError("required needs tools")
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _not_set_here(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := _TEMPLATE_NAMES & {*(value or ())}:
            raise ValueError(f"{min(reserved)} comes from the request itself")
        return value

    @field_validator("functions")
    @classmethod
    def _not_called(cls, value: tuple[Any, ...] | None, info: ValidationInfo) -> tuple[Any, ...] | None:
        if value and info.data.get("function_call") != "none":
            raise ValueError("is OpenAI's old form and not supported; send the functions as tools")
        return value

    @field_validator("continue_final_message")
    @classmethod
    def _can_continue(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if not value or "messages" not in info.data:
            return value
        last = info.data["messages"][-1]
        if not isinstance(last, AssistantMessage) or last.tool_calls:
            raise ValueError("needs a last message of the assistant, without tool calls")
        if info.data.get("add_generation_prompt"):
            raise ValueError("excludes add_generation_prompt: true")
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
        return validated(cls, body)

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer; None: up to the end of the context."""
        return self.max_completion_tokens or self.max_tokens or self.n_predict

    @property
    def repetition(self) -> float | None:
        """The penalty of repeated tokens under either of its names."""
        return self.repetition_penalty if self.repeat_penalty is None else self.repeat_penalty

    @property
    def effort(self) -> str | None:
        """The word of `reasoning_effort` under any of its names; none where thoughts are switched off."""
        if self.reasoning_effort is not None:
            return self.reasoning_effort
        if self.reasoning is not None and self.reasoning.effort is not None:
            return self.reasoning.effort
        if isinstance(self.think, str):
            return self.think
        off = (
            self.enable_thinking is False
            or self.think is False
            or (self.reasoning is not None and self.reasoning.enabled is False)
            or (self.thinking is not None and self.thinking.type == "disabled")
        )
        return "none" if off else None

    @property
    def template_variables(self) -> dict[str, Any]:
        """The variables that the request sets for the model's template.

        Thoughts are off unless it asks for them: on a CPU they can take minutes, and a description gains little.
        """
        switch = {} if self.effort is not None else {"enable_thinking": self._thinks, "thinking": self._thinks}
        return {**switch, **(self.chat_template_kwargs or {})}

    @property
    def _thinks(self) -> bool:
        """Whether thoughts are switched on, under any of the names of the switch."""
        return bool(
            self.enable_thinking
            or self.think
            or (self.reasoning is not None and self.reasoning.enabled)
            or (self.thinking is not None and self.thinking.type != "disabled")
        )

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)
