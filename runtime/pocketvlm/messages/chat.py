"""The messages of a chat, and the parts of their content."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, Strict, Tag, model_validator

from pocketvlm.messages.base import Count, Flag, Frozen, JsonObject, Text, by_field, by_form

Detail = Literal["auto", "low", "high"]
_Detail = Annotated[
    Detail, BeforeValidator(lambda value: "auto" if value is None else value, json_schema_input_type=Detail | None)
]

# ---- parts


class TextPart(Frozen):
    type: Literal["text"]
    text: Text


class ImageURL(Frozen):
    """`url` is a data: URI or a handle (sha256:...); in Python and on the command line it may be a path.

    `max_image_tokens` is an extension.
    """

    url: str
    detail: _Detail = "auto"
    max_image_tokens: Count | None = None


def _bare_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class ImageURLPart(Frozen):
    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_bare_url, json_schema_input_type=ImageURL | str)]


class ImagePart(Frozen):
    """The image part of Hugging Face transformers: one of a URL, a path, base64 text, or a picture in memory.

    `image` is bytes, a PIL image, or a uint8 array [height, width, 3].
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    type: Literal["image"]
    url: str | None = None
    path: str | Path | None = None
    base64: str | None = None
    image: Any = None
    detail: _Detail = "auto"
    max_image_tokens: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ImagePart:
        sources = [name for name in ("url", "path", "base64", "image") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError("an image part needs exactly one of url, path, base64 and image")
        return self


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImageURLPart, Tag("<image_url>")]
    | Annotated[ImagePart, Tag("<image>")],
    by_field("type", ("text", "image_url", "image")),
]
_CONTENT = by_form("must be a string or a list of parts")
Content = Annotated[Annotated[Text, Tag("<string>")] | Annotated[tuple[Part, ...], Tag("<list>")], _CONTENT]
TextContent = Annotated[Annotated[Text, Tag("<string>")] | Annotated[tuple[TextPart, ...], Tag("<list>")], _CONTENT]


# ---- tool calls of earlier turns


class FunctionCall(Frozen):
    """`arguments` is a JSON string; some clients send the object."""

    name: Text
    arguments: Annotated[
        Annotated[Text, Tag("<string>")] | Annotated[JsonObject, Tag("<object>")],
        by_form("must be a JSON string or an object"),
    ]
    description: Text | None = None


class ToolCall(Frozen):
    """`index` is allowed because clients keep it from a stream; it is ignored."""

    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Annotated[int, Strict()] | None = None


# ---- messages


class SystemMessage(Frozen):
    role: Literal["system", "developer"]
    content: TextContent
    name: Text | None = None


class UserMessage(Frozen):
    role: Literal["user"]
    content: Content
    name: Text | None = None


# In other APIs, fields of these names are no text.
OtherThought = Annotated[Text | None, BeforeValidator(lambda value: value if isinstance(value, str) else None)]


class AssistantMessage(Frozen):
    """An earlier answer. The last fields are allowed because clients send whole messages back, with these as null.

    Clients send its thought as `reasoning_content`, `reasoning`, `thinking` or `reasoning_text`. With `prefix` the last
    message is the beginning of the answer.
    """

    role: Literal["assistant"]
    content: TextContent | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Field(min_length=1)] | None = None
    reasoning_content: Text | None = None
    name: Text | None = None
    reasoning: Text | None = None
    thinking: OtherThought = None
    reasoning_text: OtherThought = None
    prefix: Flag | None = None
    tool_call_id: None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    @property
    def thought(self) -> str:
        """The thought, "" if there is none."""
        return self.reasoning_content or self.reasoning or self.thinking or self.reasoning_text or ""

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and self.tool_calls is None:
            raise ValueError("an assistant message needs content or tool_calls")
        return self


class ToolMessage(Frozen):
    """The result of a tool call."""

    role: Literal["tool"]
    content: TextContent
    tool_call_id: Text | None = None
    name: Text | None = None


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    by_field("role", ("system", "developer", "user", "assistant", "tool")),
]
