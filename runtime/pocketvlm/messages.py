"""The message schema: what goes into a chat and what comes out, the same in Python, on the command line and over HTTP.

OpenAI's chat completions read together with Hugging Face's Chat Completion schema. Values are frozen and validated
once, by `ChatRequest.parse`; a refusal is a RequestError whose `param` is the path of the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pocketvlm.errors import RequestError

Detail = Literal["auto", "low", "high"]
Count = Annotated[int, Strict(), Field(gt=0)]
FinishReason = Literal["stop", "length", "tool_calls"]
MAX_STOPS = 4


def _encodable(value: str) -> str:
    """JSON can escape half of a surrogate pair; no tokenizer takes that."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair, not Unicode text") from None
    return value


Text = Annotated[str, AfterValidator(_encodable)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


def _choice(key: str, tags: tuple[str, ...]) -> Discriminator:
    """Choose by a field. Tags are written <so>, so that an error's path can leave them out."""

    def tag(value: Any) -> str:
        return f"<{value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)}>"

    message = f"{key} must be one of {', '.join(tags)}"
    return Discriminator(tag, custom_error_type=f"unknown_{key}", custom_error_message=message)


def _text_or_parts(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<parts>" if isinstance(value, Sequence) else None


_CONTENT = Discriminator(
    _text_or_parts,
    custom_error_type="content_type",
    custom_error_message="must be a string or a list of parts",
)


# ---- parts


class TextPart(_Frozen):
    type: Literal["text"]
    text: Text


class ImageURL(_Frozen):
    """`url` is a data: URI, or in Python and the CLI a path. `max_image_tokens` is an extension."""

    url: str
    detail: Detail = "auto"
    max_image_tokens: Count | None = None


def _bare_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class ImageURLPart(_Frozen):
    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_bare_url)]


class ImagePart(_Frozen):
    """Hugging Face transformers' own part, for Python: one of a URL, a path, base64 text, or a picture in memory.

    `image` is bytes, a PIL image, or a uint8 array [height, width, 3].
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    type: Literal["image"]
    url: str | None = None
    path: str | Path | None = None
    base64: str | None = None
    image: Any = None
    detail: Detail = "auto"
    max_image_tokens: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ImagePart:
        given = [name for name in ("url", "path", "base64", "image") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("an image part needs exactly one of url, path, base64 and image")
        return self


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImageURLPart, Tag("<image_url>")]
    | Annotated[ImagePart, Tag("<image>")],
    _choice("type", ("text", "image_url", "image")),
]
Content = Annotated[Annotated[Text, Tag("<string>")] | Annotated[tuple[Part, ...], Tag("<parts>")], _CONTENT]
TextContent = Annotated[Annotated[Text, Tag("<string>")] | Annotated[tuple[TextPart, ...], Tag("<parts>")], _CONTENT]


# ---- messages


class SystemMessage(_Frozen):
    role: Literal["system", "developer"]
    content: TextContent
    name: Text | None = None


class UserMessage(_Frozen):
    role: Literal["user"]
    content: Content
    name: Text | None = None


class AssistantMessage(_Frozen):
    role: Literal["assistant"]
    content: TextContent
    name: Text | None = None


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")],
    _choice("role", ("system", "developer", "user", "assistant")),
]


# ---- request


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class StreamOptions(_Frozen):
    include_usage: bool = False


class ChatRequest(_Frozen):
    """One request. None means the default everywhere.

    Sampling follows llama.cpp's chain: penalties, top-k, top-p, min-p, temperature, draw. Temperature 0 is greedy.
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
    stop: Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(max_length=MAX_STOPS)] | None = None
    n: Annotated[int, Strict(), Field(ge=1, le=16)] | None = None
    frequency_penalty: Annotated[float, Strict(), Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Strict(), Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Strict(), Field(gt=0, le=10)] | None = None
    logit_bias: Mapping[int, Annotated[float, Strict(), Field(ge=-100, le=100)]] | None = None
    logprobs: Annotated[bool, Strict()] | None = None
    top_logprobs: Annotated[int, Strict(), Field(ge=0, le=20)] | None = None
    stream: Annotated[bool, Strict()] | None = None
    stream_options: StreamOptions | None = None
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

    @classmethod
    def parse(cls, messages: Sequence[Any], **fields: Any) -> ChatRequest:
        """Validate; raises RequestError naming the first field that is wrong."""
        if isinstance(messages, str):
            raise RequestError("must be a list of messages", "messages")
        try:
            return cls.model_validate({"messages": messages, **fields})
        except ValidationError as error:
            raise _request_error(error) from None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    path = [str(step) for step in first["loc"] if not str(step).startswith(("<", "[key]"))]
    if first["type"].startswith("unknown_"):  # by a discriminator, whose path ends before the field
        path.append(first["type"].removeprefix("unknown_"))
    message = _PLAIN.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return RequestError(message, ".".join(path) or None)


# Where pydantic speaks of Python's types, or of "input".
_PLAIN = {
    "extra_forbidden": "unknown field",
    "missing": "is required",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
}


# ---- answer


class TopLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(_Answer):
    content: list[TokenLogprob]


class ResponseMessage(_Answer):
    role: Literal["assistant"] = "assistant"
    content: str | None


class Choice(_Answer):
    index: int
    message: ResponseMessage
    finish_reason: FinishReason
    logprobs: ChoiceLogprobs | None = None


class PromptTokensDetails(_Answer):
    cached_tokens: int = 0
    image_tokens: int = 0


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ImageTimings(_Answer):
    """One picture: sizes are [width, height] in pixels; `cache` says where its embeddings came from.

    `shrunk` is true where the model saw fewer pixels than the picture has. Milliseconds.
    """

    original_size: tuple[int, int]
    used_size: tuple[int, int]
    tiles: int
    tokens: int
    shrunk: bool
    cache: Literal["none", "kv"]
    read_ms: float
    preprocess_ms: float
    encode_ms: float


class Timings(_Answer):
    """Milliseconds of the whole request; tokens per second of prefill (text and pictures) and decode."""

    images: list[ImageTimings] = []
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None


class ChatCompletion(_Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[Choice]
    usage: Usage
    timings: Timings

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].message.content or ""


class Delta(_Answer):
    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChunkChoice(_Answer):
    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(_Answer):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None

    @property
    def text(self) -> str:
        """The first choice's new text; empty in the last chunk."""
        return self.choices[0].delta.content if self.choices else ""
