"""The content blocks of Anthropic's messages, as clients send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from pocketvlm.messages.base import Flag, JsonObject, Open, Text, TextOrNull, by_field, by_form, empty_for_null
from pocketvlm.messages.parts import HANDLE_SCHEME, is_handle


class TextBlock(Open):
    type: Literal["text"]
    text: TextOrNull


class Base64Source(Open):
    """The format is read from the data itself."""

    type: Literal["base64"]
    data: str


class URLSource(Open):
    """A data: URI, a handle (sha256:...), or a link to a host that the server may fetch pictures from."""

    type: Literal["url"]
    url: str


class FileSource(Open):
    """The handle (sha256:..., or sha256:...#page=3) of a file that was sent once."""

    type: Literal["file"]
    file_id: str

    @field_validator("file_id")
    @classmethod
    def _of_this_server(cls, value: str) -> str:
        if not is_handle(value):
            raise ValueError(f"names a file of another service; send the {HANDLE_SCHEME}... id of POST /v1/images")
        return value


_FileSource = Annotated[
    Annotated[Base64Source, Tag("<base64>")]
    | Annotated[URLSource, Tag("<url>")]
    | Annotated[FileSource, Tag("<file>")],
    by_field("type", ("base64", "url", "file")),
]


class Transformations(Open):
    oversized_image: Literal["downsize", "error"] | None = None

    @field_validator("oversized_image")
    @classmethod
    def _fits(cls, value: str | None) -> str | None:
        if value == "error":
            raise ValueError("error is not supported; a large picture is scaled down")
        return value


class ImageBlock(Open):
    type: Literal["image"]
    source: _FileSource
    transformations: Transformations | None = None


class SearchResultBlock(Open):
    type: Literal["search_result"]
    source: TextOrNull = ""
    title: TextOrNull = ""
    content: tuple[TextBlock, ...] = ()


class TextSource(Open):
    type: Literal["text"]
    data: Text


class ContentSource(Open):
    type: Literal["content"]
    content: Annotated[
        Annotated[Text, Tag("<string>")] | Annotated[tuple[_SourceBlock, ...], Tag("<list>")],
        by_form("must be a string or a list of blocks"),
    ]


_SourceBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")], by_field("type", ("text", "image"))
]


class DocumentBlock(Open):
    """A document as text, as blocks of text and images, or as a file, such as a PDF, whose pages are shown."""

    type: Literal["document"]
    source: Annotated[
        Annotated[TextSource, Tag("<text>")]
        | Annotated[ContentSource, Tag("<content>")]
        | Annotated[Base64Source, Tag("<base64>")]
        | Annotated[URLSource, Tag("<url>")]
        | Annotated[FileSource, Tag("<file>")],
        by_field("type", ("text", "content", "base64", "url", "file")),
    ]
    title: TextOrNull = ""
    context: TextOrNull = ""


class ToolReferenceBlock(Open):
    """A tool with `defer_loading` that a search has found."""

    type: Literal["tool_reference"]
    tool_name: Text


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[DocumentBlock, Tag("<document>")]
    | Annotated[SearchResultBlock, Tag("<search_result>")]
    | Annotated[ToolReferenceBlock, Tag("<tool_reference>")],
    by_field("type", ("text", "image", "document", "search_result", "tool_reference")),
]
_Result = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[tuple[ResultBlock, ...], Tag("<list>")],
    by_form("must be a string or a list of blocks"),
]


class ToolResultBlock(Open):
    type: Literal["tool_result"]
    tool_use_id: TextOrNull = ""
    content: Annotated[_Result, BeforeValidator(empty_for_null, json_schema_input_type=_Result | None)] = ""
    is_error: Flag | None = None


class ToolUseBlock(Open):
    type: Literal["tool_use"]
    id: TextOrNull = ""
    name: Text
    input: JsonObject = Field(default_factory=dict)


class ThinkingBlock(Open):
    """A thought of an earlier answer. The signature of one whose text was left out holds it."""

    type: Literal["thinking"]
    thinking: TextOrNull = ""
    signature: TextOrNull = ""


class OtherBlock(Open):
    """Something in an earlier answer that only the server that gave it understands, such as redacted thinking."""

    type: Text


UserBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[DocumentBlock, Tag("<document>")]
    | Annotated[SearchResultBlock, Tag("<search_result>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    by_field("type", ("text", "image", "document", "search_result", "tool_result")),
]
_ANSWER_TAGS = {kind: f"<{kind}>" for kind in ("text", "image", "thinking", "tool_use")}


def _answer_form(block: Any) -> str | None:
    kind = block.get("type") if isinstance(block, Mapping) else getattr(block, "type", None)
    return _ANSWER_TAGS.get(kind, "<other>") if isinstance(kind, str) else None


AnswerBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[OtherBlock, Tag("<other>")],
    Discriminator(_answer_form, custom_error_type="unknown_type", custom_error_message="is required"),
]
ContentSource.model_rebuild()
