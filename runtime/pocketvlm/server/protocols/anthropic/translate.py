"""A request of Anthropic's Messages API as the one request, and where each of its fields is in what the client sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pocketvlm.errors import RequestError
from pocketvlm.messages import ChatRequest
from pocketvlm.server.protocols.anthropic.blocks import (
    Base64Source,
    ContentSource,
    DocumentBlock,
    FileSource,
    ImageBlock,
    SearchResultBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    URLSource,
)
from pocketvlm.server.protocols.anthropic.request import AssistantMessage, MessagesBody, Tool, UserMessage
from pocketvlm.server.protocols.carried_thoughts import read_thought
from pocketvlm.server.protocols.exchange import parsed

# Claude Code begins its system text with this line, which differs in every request: no prompt would stay cached.
_BILLING = "x-anthropic-billing-header:"


@dataclass(frozen=True)
class _Placed:
    """A part of a message, the path of its block in the body, and where other fields of the part are below that."""

    part: Mapping[str, Any]
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Messages:
    """The messages of the request, and the paths of their parts in the body."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    paths: dict[str, str] = field(default_factory=dict)

    def add(self, role: str, content: str | Sequence[_Placed], path: str, **fields: Any) -> str:
        """Add a message, which the body has at `path`. Return its own path."""
        at = f"messages.{len(self.messages)}"
        self.paths[at] = path
        message: dict[str, Any] = {"role": role, "content": content, **fields}
        if not isinstance(content, str):
            message["content"] = [placed.part for placed in content]
            for i, placed in enumerate(content):
                self.paths[f"{at}.content.{i}"] = placed.path
                for name, own in placed.fields.items():
                    self.paths[f"{at}.content.{i}.{name}"] = f"{placed.path}.{own}"
        self.messages.append(message)
        return at


def translated(body: MessagesBody) -> tuple[ChatRequest, dict[str, str]]:
    """Return the request, and the paths of its fields in the body. Raises RequestError with the body's paths."""
    made = _Messages()
    references: set[str] = set()
    _add_system(made, body)
    for i, message in enumerate(body.messages):
        path = f"messages.{i}"
        if isinstance(message, UserMessage):
            references |= _add_user(made, message, path)
        elif isinstance(message, AssistantMessage):
            _add_answer(made, message, path)
        elif isinstance(message.content, str):
            made.add("system", message.content, path)
        else:
            made.add("system", [*_placed(message.content, f"{path}.content")], path)
    paths = made.paths
    paths["tool_choice.function"] = "tool_choice"
    tools = [*_offered(body.tools or (), references)]
    for k, (i, _) in enumerate(tools):
        paths |= {f"tools.{k}": f"tools.{i}", f"tools.{k}.function": f"tools.{i}"}
        paths[f"tools.{k}.function.parameters"] = f"tools.{i}.input_schema"
    fields = {
        "messages": made.messages,
        **{name: getattr(body, name) for name in ("model", "max_tokens", "temperature", "top_p", "top_k")},
        "tools": [_function(tool) for _, tool in tools] or None,
        **_tool_choice(body),
        **_thoughts(body),
    }
    in_config = body.output_config and body.output_config.format
    if form := in_config or body.output_format:
        fields["response_format"] = {"type": "json_schema", "schema": form.schema_}
        paths["response_format"] = "output_config.format" if in_config else "output_format"
    request = parsed(fields, paths)
    return request.model_copy(update={"stop": body.stop_sequences or None}), paths


# ---- messages


def _add_system(made: _Messages, body: MessagesBody) -> None:
    if isinstance(body.system, str):
        text = body.system
        if text.startswith(_BILLING):
            text = text.partition("\n")[2]
        parts: str | list[_Placed] = text
    else:
        parts = [placed for placed in _placed(body.system or (), "system") if not _is_billing(placed)]
    if parts:
        at = made.add("system", parts, "system")
        made.paths[f"{at}.content"] = "system"


def _is_billing(placed: _Placed) -> bool:
    return str(placed.part.get("text", "")).startswith(_BILLING)


def _add_user(made: _Messages, message: UserMessage, path: str) -> set[str]:
    """Add a user's message, and the results of tools in it. Return the names of the tools that results refer to."""
    if isinstance(message.content, str):
        made.add("user", message.content, path)
        return set()
    references: set[str] = set()
    parts: list[_Placed] = []
    for j, block in enumerate(message.content):
        at = f"{path}.content.{j}"
        if not isinstance(block, ToolResultBlock):
            parts += _parts_of(block, at)
            continue
        if parts:
            made.add("user", parts, path)
            parts = []
        _add_result(made, block, at)
        if not isinstance(block.content, str):
            references |= {part.tool_name for part in block.content if isinstance(part, ToolReferenceBlock)}
    if parts or not message.content:
        made.add("user", parts, path)
    return references


def _add_result(made: _Messages, block: ToolResultBlock, path: str) -> None:
    if isinstance(block.content, str):
        content: str | list[_Placed] = f"Error: {block.content}" if block.is_error else block.content
    else:
        content = [_Placed({"type": "text", "text": "Error:"}, path)] if block.is_error else []
        content += _placed(block.content, f"{path}.content")
    at = made.add("tool", content, path, tool_call_id=block.tool_use_id or None)
    made.paths[f"{at}.tool_call_id"] = f"{path}.tool_use_id"


def _add_answer(made: _Messages, message: AssistantMessage, path: str) -> None:
    if isinstance(message.content, str):
        made.add("assistant", message.content, path)
        return
    parts: list[_Placed] = []
    calls: list[dict[str, Any]] = []
    calls_paths: list[str] = []
    thoughts: list[str] = []
    for j, block in enumerate(message.content):
        at = f"{path}.content.{j}"
        if isinstance(block, ToolUseBlock):
            calls.append({"id": block.id, "function": {"name": block.name, "arguments": dict(block.input)}})
            calls_paths.append(at)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking or read_thought(block.signature))
        else:
            parts += _parts_of(block, at)
    fields: dict[str, Any] = {"tool_calls": calls} if calls else {}
    if thought := "\n\n".join(filter(None, thoughts)):
        fields["reasoning_content"] = thought
    own = made.add("assistant", parts, path, **fields)
    for i, at in enumerate(calls_paths):
        call = f"{own}.tool_calls.{i}"
        made.paths |= {call: at, f"{call}.function": at, f"{call}.function.arguments": f"{at}.input"}


# ---- blocks


def _placed(blocks: Sequence[Any], path: str) -> Iterator[_Placed]:
    for i, block in enumerate(blocks):
        yield from _parts_of(block, f"{path}.{i}")


def _parts_of(block: object, path: str) -> Iterator[_Placed]:
    """Yield the parts of a message that a block becomes; none for what no model can read."""
    match block:
        case TextBlock():
            yield _text(block.text, path)
        case ImageBlock():
            yield _picture("image", block.source, path)
        case SearchResultBlock():
            texts = [text.text for text in block.content]
            yield _text("\n".join(filter(None, [block.title, block.source, *texts])), path)
        case ToolReferenceBlock():
            yield _text(block.tool_name, path)
        case DocumentBlock():
            if head := "\n".join(filter(None, [block.title, block.context])):
                yield _text(head, path)
            match block.source:
                case TextSource(data=text) | ContentSource(content=str(text)):
                    yield _text(text, path)
                case ContentSource(content=blocks):
                    yield from _placed(blocks, f"{path}.source.content")
                case file:
                    yield _picture("file", file, path)


def _picture(kind: Literal["image", "file"], source: Base64Source | URLSource | FileSource, path: str) -> _Placed:
    if isinstance(source, FileSource):
        return _Placed({"type": kind, "url": source.file_id}, path, {"url": "source.file_id"})
    return _Placed({"type": kind, "source": source.model_dump()}, path)


def _text(text: str, path: str) -> _Placed:
    return _Placed({"type": "text", "text": text}, path)


# ---- tools and thoughts


def _offered(tools: Sequence[Tool], references: set[str]) -> Iterator[tuple[int, Tool]]:
    """Yield the tools that the model knows, with their places in the body."""
    for i, tool in enumerate(tools):
        if not tool.defer_loading or tool.name in references:
            yield i, tool


def _function(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": {**function, "strict": tool.strict}}


def _tool_choice(body: MessagesBody) -> dict[str, Any]:
    choice = body.tool_choice
    if choice is None:
        return {}
    if choice.type in ("any", "tool") and not body.tools:
        raise RequestError(f"{choice.type} needs tools", "tool_choice.type")
    if choice.type == "tool" and choice.name is None:
        raise RequestError("is required", "tool_choice.name")
    fields: dict[str, Any] = {"tool_choice": {"type": choice.type}}
    if choice.type == "tool":
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    if choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def _thoughts(body: MessagesBody) -> dict[str, Any]:
    """Return the fields that switch thoughts. How much effort goes into them matters only where they are on."""
    if body.thinking is None:
        return {}
    if body.thinking.type == "disabled":
        return {"thinking": {"type": "disabled"}}
    effort = body.output_config and body.output_config.effort
    return {"reasoning_effort": effort} if effort else {"thinking": {"type": "enabled"}}
