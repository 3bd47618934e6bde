"""The items of a request: messages, thoughts, calls of tools and their results, also as other services kept them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema

from pocketvlm.messages.base import AlsoTakes, JsonObject, Open, Text, TextOrNull, by_form, empty_for_null, plain_json
from pocketvlm.messages.parts import HANDLE_SCHEME, Part, is_handle
from pocketvlm.server.protocols.carried_thoughts import read_thought

# ---- parts of a message


_CONTENTS = {"input_image": ("image_url",), "input_file": ("file_data", "file_url")}  # fields of parts, by type


def _known_part(part: object) -> object:
    """Return a part as the messages of a chat know it. `file_id` may be the handle of a file that was sent once."""
    if not isinstance(part, Mapping):
        return part
    kind, file_id = part.get("type"), part.get("file_id")
    fields = _CONTENTS.get(kind) if isinstance(kind, str) else None
    if fields is None or not isinstance(file_id, str) or any(part.get(field) is not None for field in fields):
        return part
    if not is_handle(file_id):
        raise ValueError(
            f"file_id names a file of another service; send {' or '.join(fields)}, or the {HANDLE_SCHEME}... id of "
            "POST /v1/images"
        )
    return {name: value for name, value in part.items() if name not in fields}


def _part_schema(kind: str, *fields: str) -> dict[str, Any]:
    text_or_null: dict[str, Any] = {"type": ["string", "null"]}
    properties = {"type": {"const": kind}, **dict.fromkeys(fields, text_or_null)}
    return {"type": "object", "required": ["type"], "properties": properties}


_Part = Annotated[
    Part,
    BeforeValidator(_known_part),
    AlsoTakes(
        _part_schema("input_text", "text"),
        _part_schema("output_text", "text"),
        _part_schema("refusal", "refusal"),
        _part_schema("input_image", "image_url", "file_id", "detail"),
        _part_schema("input_file", "file_data", "file_url", "file_id", "filename", "detail"),
    ),
]
_Content = Annotated[
    Annotated[TextOrNull, Tag("<string>")] | Annotated[tuple[_Part, ...], Tag("<list>")],
    by_form("must be a string or a list of parts"),
    AlsoTakes({"type": "null"}),
]


_ContentOrNull = Annotated[_Content, BeforeValidator(empty_for_null)]


# ---- items


class _Item(Open):
    id: Text | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _is_plain(cls, value: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        """Refuse what strict JSON parsers refuse, in fields that are ignored as well: an item is listed as it came."""
        item = handler(value)
        if isinstance(value, Mapping):
            plain_json(value)
        return item


class MessageItem(_Item):
    """`status` is only there in messages that an API has answered; "completed" says that nothing is to be added."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: _ContentOrNull
    status: Text | None = None


class _TextPart(Open):
    text: TextOrNull = ""


class ReasoningItem(_Item):
    type: Literal["reasoning"]
    summary: tuple[_TextPart, ...] | None = None
    content: tuple[_TextPart, ...] | None = None
    encrypted_content: Text | None = None

    @property
    def thought(self) -> str:
        """The text of the thought. What other services have encrypted is empty."""
        for parts in (self.content, self.summary):
            if text := "\n\n".join(filter(None, (part.text for part in parts or ()))):
                return text
        return read_thought(self.encrypted_content or "")


class FunctionCallItem(_Item):
    type: Literal["function_call"]
    call_id: TextOrNull = ""
    name: Text
    namespace: Text | None = None
    arguments: Any = None  # judged with the chat's own tool calls


class CustomCallItem(_Item):
    type: Literal["custom_tool_call"]
    call_id: TextOrNull = ""
    name: Text
    namespace: Text | None = None
    input: TextOrNull = ""


class ClientCallItem(_Item):
    """A call of a tool whose form OpenAI's API defines and that runs at the client's."""

    type: Literal["local_shell_call", "shell_call", "apply_patch_call"]
    call_id: TextOrNull = ""
    action: JsonObject | None = None
    operation: JsonObject | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return self.action or self.operation or {}


class CallOutputItem(_Item):
    """The result of a call. `output` of a shell is a list of objects without a type."""

    type: Literal[
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
    ]
    call_id: Text | None = None
    output: Annotated[
        Annotated[TextOrNull, Tag("<string>")]
        | Annotated[tuple[_Part, ...], Tag("<list>")]
        | Annotated[JsonObject, Tag("<object>")],
        by_form("must be a string or a list of parts"),
        BeforeValidator(lambda value: _listed_as_text(empty_for_null(value))),
        AlsoTakes({"type": "null"}, {"type": "array", "items": {"type": "object"}}),
    ] = ""


def _listed_as_text(value: Any) -> Any:
    is_plain = (
        isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) and "type" not in v for v in value)
    )
    return json.dumps(value) if is_plain else value


class ItemReference(Open):
    """An item of an earlier request or answer that the server keeps."""

    type: Literal["item_reference"] | None = None
    id: Text


class ForeignItem(_Item):
    """What a tool of another service did. Its texts went into the answers that follow it."""

    type: Literal[
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "mcp_list_tools",
        "mcp_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "tool_search_call",
        "tool_search_output",
        "ghost_snapshot",
    ]


_FOREIGN = get_args(ForeignItem.model_fields["type"].annotation)
_CLIENT_CALLS = ("local_shell_call", "shell_call", "apply_patch_call")
_OUTPUTS = tuple(f"{call}_output" for call in ("function_call", "custom_tool_call", *_CLIENT_CALLS))
_TAGS = {
    "message": "<message>",
    "reasoning": "<reasoning>",
    "function_call": "<function_call>",
    "custom_tool_call": "<custom>",
    "item_reference": "<reference>",
    **dict.fromkeys(_CLIENT_CALLS, "<client>"),
    **dict.fromkeys(_OUTPUTS, "<output>"),
    **dict.fromkeys(_FOREIGN, "<foreign>"),
}
ITEM_TYPES = sorted(_TAGS)


def _tag(item: Any) -> str:
    """Return the tag of an item's class. A message needs no type, and neither does a reference."""
    fields = item if isinstance(item, Mapping) else getattr(item, "__dict__", {})
    kind = fields.get("type")
    if kind is None:
        return "<reference>" if "id" in fields and "role" not in fields else "<message>"
    return _TAGS.get(kind, "<unknown>") if isinstance(kind, str) else "<unknown>"


class _OneOfSeveral:
    """Annotates a union whose members differ by more than their JSON schemas say."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler(source)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": handler(schema)["oneOf"]}


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[CustomCallItem, Tag("<custom>")]
    | Annotated[ClientCallItem, Tag("<client>")]
    | Annotated[CallOutputItem, Tag("<output>")]
    | Annotated[ItemReference, Tag("<reference>")]
    | Annotated[ForeignItem, Tag("<foreign>")],
    Discriminator(
        _tag,
        custom_error_type="unknown_type",
        custom_error_message=f"must be one of {', '.join(ITEM_TYPES)}",
    ),
    _OneOfSeveral(),
]
