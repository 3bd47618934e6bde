"""The messages of a chat, also as clients keep those of other servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Tag, ValidationInfo, field_validator, model_validator

from pocketvlm.messages.base import Dropped, Flag, Open, Text, by_field, fields_of
from pocketvlm.messages.calls import ToolCalls, readable_call
from pocketvlm.messages.parts import THOUGHTS, Content, image_of_message, is_picture_object


class _Message(Open):
    @model_validator(mode="before")
    @classmethod
    def _with_pictures(cls, value: object) -> object:
        """Take pictures next to the content, as in Ollama's messages, into it."""
        fields = fields_of(value)
        if not isinstance(fields, dict) or not isinstance(images := fields.get("images"), list | tuple):
            return fields
        parts: list[Any] = [
            image_of_message(image, f"images.{i}")
            if isinstance(image, str) or is_picture_object(image)
            else {"type": "image", "base64": image}
            for i, image in enumerate(images)
        ]
        return {**fields, "content": [*parts, *_listed(fields.get("content"))]} if parts else fields


def _listed(content: Any) -> list[Any]:
    """Return content as a list of parts."""
    if isinstance(content, list | tuple):
        return [*content]
    return [{"type": "text", "text": content}] if content else []


class SystemMessage(_Message):
    role: Literal["system", "developer"]
    content: Content
    name: Text | None = None


class UserMessage(_Message):
    role: Literal["user"]
    content: Content
    name: Text | None = None


# In other APIs, fields of these names hold something else than text.
OtherThought = Annotated[
    Text | None,
    BeforeValidator(lambda value: value if isinstance(value, str) else None, json_schema_input_type=Any),
]


_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_text")


class AssistantMessage(_Message):
    """An earlier answer. `content` is None only where there are tool calls.

    Clients send its thought as `reasoning_content`, `reasoning`, `thinking` or `reasoning_text`. With `prefix` the last
    message is the beginning of the answer. The last fields are None: clients send whole messages back, and what these
    have becomes content or tool calls, or has no place in a prompt.
    """

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: ToolCalls | None = None
    reasoning_content: Text | None = None
    name: Text | None = None
    reasoning: Text | None = None
    thinking: OtherThought = None
    reasoning_text: OtherThought = None
    prefix: Flag | None = None
    tool_call_id: Dropped = None
    refusal: Dropped = None
    annotations: Dropped = None
    audio: Dropped = None
    function_call: Dropped = None
    regions: Dropped = None

    @model_validator(mode="before")
    @classmethod
    def _known_form(cls, value: object) -> object:
        """Write other forms of an answer as this one: a function call, a refusal, thoughts among the parts."""
        fields = fields_of(value)
        if not isinstance(fields, dict):
            return fields
        if isinstance(call := fields.get("function_call"), Mapping) and not fields.get("tool_calls"):
            fields["tool_calls"] = [{"function": call}]
        texts = [text for text in (fields.get("refusal"),) if isinstance(text, str) and text]
        if isinstance(calls := fields.get("tool_calls"), list | tuple):
            read = [readable_call(call) for call in calls]
            fields["tool_calls"] = [call for call, _ in read]
            texts += [rest for _, rest in read if rest]
        if isinstance(parts := fields.get("content"), list | tuple):
            thoughts = [_thought(part) for part in parts]
            fields["content"] = [part for part, thought in zip(parts, thoughts, strict=True) if thought is None]
            if (thought := "\n\n".join(filter(None, thoughts))) and not _has_thought(fields):
                fields["reasoning_content"] = thought
        if texts:
            fields["content"] = _with_texts(fields.get("content"), texts)
        has_key = "content" in fields or _has_thought(fields)
        if fields.get("content") is None and not fields.get("tool_calls") and has_key:
            fields["content"] = ""
        return fields

    @field_validator("tool_calls")
    @classmethod
    def _none_for_empty(cls, value: ToolCalls | None, info: ValidationInfo) -> ToolCalls | None:
        if value == () and info.data.get("content") is None:
            raise ValueError("must not be empty where there is no content")
        return value or None

    @property
    def thought(self) -> str:
        """The thought, "" if there is none."""
        return self.reasoning_content or self.reasoning or self.thinking or self.reasoning_text or ""

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and self.tool_calls is None:
            raise ValueError("an assistant message needs content or tool_calls")
        return self


def _has_thought(fields: Mapping[str, Any]) -> bool:
    return any(isinstance(fields.get(name), str) for name in _THOUGHT_FIELDS)


def _thought(part: Any) -> str | None:
    """Return the text of a part that is a thought, None for other parts."""
    keys = THOUGHTS.get(str(part.get("type"))) if isinstance(part, Mapping) else None
    if keys is None:
        return None
    texts = (part.get(key) for key in keys)
    return next((text for text in texts if isinstance(text, str)), "")


def _with_texts(content: Any, texts: list[str]) -> Any:
    if content is None or isinstance(content, str):
        return "\n\n".join(filter(None, [content, *texts]))
    return [*content, *({"type": "text", "text": text} for text in texts)] if isinstance(content, list) else content


class ToolMessage(_Message):
    """The result of a tool call."""

    role: Annotated[
        Literal["tool"],
        BeforeValidator(
            lambda role: "tool" if role == "function" else role, json_schema_input_type=Literal["tool", "function"]
        ),
    ]
    content: Content = ""
    tool_call_id: Text | None = None
    name: Text | None = None


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")]
    | Annotated[ToolMessage, Tag("<function>")],
    by_field("role", ("system", "developer", "user", "assistant", "tool")),
]
