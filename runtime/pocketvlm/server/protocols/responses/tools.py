"""The tools of a request as functions of a chat, and calls of these functions as items of the tools' own kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pocketvlm.errors import RequestError, shortened
from pocketvlm.server.protocols.responses.items import ClientCallItem, CustomCallItem, FunctionCallItem

# Tools that OpenAI runs. Clients send them to every server, so they are left out rather than refused. Some have a date.
_HOSTED = (
    "web_search",
    "file_search",
    "code_interpreter",
    "image_generation",
    "computer",
    "mcp",
    "tool_search",
    "programmatic_tool_calling",
)


def _parameters(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_INPUT = _parameters(["input"], input=_TEXT)
# Tools that run at the client's, and whose arguments OpenAI's API defines.
_CLIENT_TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "local_shell": (
        "Run a command on the user's machine.",
        _parameters(["command"], command=_TEXTS, working_directory=_TEXT, timeout_ms={"type": "integer"}),
    ),
    "shell": (
        "Run shell commands.",
        _parameters(["commands"], commands=_TEXTS, timeout_ms={"type": "integer"}),
    ),
    "apply_patch": (
        "Create, update or delete a file. diff is a V4A diff.",
        _parameters(
            ["type", "path"],
            type={"enum": ["create_file", "update_file", "delete_file"]},
            path=_TEXT,
            diff=_TEXT,
        ),
    ),
}


@dataclass(frozen=True)
class CallableTool:
    """A tool that the model may call as the function `name`; `own_name` and `namespace` are the client's."""

    name: str
    kind: str
    own_name: str
    namespace: str | None = None


@dataclass
class Toolbox:
    """`functions` are a chat's tools, in the same order as their `places`, such as tools.2, in the client's request.

    `kept` are the client's definitions of these tools, and `notes` says which others are left out.
    """

    functions: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _tools: dict[str, CallableTool] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]]) -> Toolbox:
        """Raises RequestError for a tool of an unknown type."""
        box = cls()
        for i, tool in enumerate(tools):
            box._add(tool, f"tools.{i}")
        return box

    def _add(self, tool: Mapping[str, Any], place: str) -> None:
        kind = tool.get("type") or "function"
        if kind == "namespace":
            inner = tool.get("tools")
            if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
                raise RequestError("must be a list of tools", f"{place}.tools")
            for i, one in enumerate(inner):
                self._add_callable(one, f"{place}.tools.{i}", str(tool.get("name") or ""))
        elif _is_hosted(kind):
            self.notes.append(f"{place}: {shortened(str(kind))} does not exist here and was left out")
            return
        else:
            self._add_callable(tool, place, None)
        self.kept.append(dict(tool))

    def _add_callable(self, tool: Mapping[str, Any], place: str, namespace: str | None) -> None:
        kind = tool.get("type") or "function"
        if not isinstance(kind, str) or kind not in ("function", "custom", *_CLIENT_TOOLS):
            known = ", ".join(("function", "custom", "namespace", *_CLIENT_TOOLS))
            raise RequestError(f"must be one of {known}, or a tool of OpenAI's, which is left out", f"{place}.type")
        nested = isinstance(tool.get("function"), Mapping)
        own_name = kind if kind in _CLIENT_TOOLS else (tool["function"] if nested else tool).get("name")
        name = qualified(own_name, namespace) if isinstance(own_name, str) else own_name
        if kind in _CLIENT_TOOLS:
            description, parameters = _CLIENT_TOOLS[kind]
            function = {"type": "function", "name": name, "description": description, "parameters": parameters}
        elif kind == "custom":
            function = {"type": "function", "name": name, "description": _described(tool), "parameters": _INPUT}
        else:
            # The rest is judged by the chat's own schema.
            function = {**tool, "type": "function"} if nested else {**tool, "type": "function", "name": name}
        self.functions.append(function)
        self.places.append(place)
        if isinstance(name, str) and isinstance(own_name, str):
            self._tools[name] = CallableTool(name, kind, own_name, namespace)

    def choice(self, choice: str | Mapping[str, Any] | None) -> tuple[Any, dict[str, str]]:
        """Return a tool choice as a chat's, and the client's paths of its fields.

        Raises RequestError for a tool that was left out.
        """
        if not isinstance(choice, Mapping):
            return choice, {}
        kind = choice.get("type")
        if kind == "allowed_tools" and isinstance(tools := choice.get("tools"), list):
            named: list[Any] = []
            paths = {"tool_choice.allowed_tools": "tool_choice"}
            for i, tool in enumerate(tools):
                if not (isinstance(tool, Mapping) and _is_hosted(tool.get("type"))):
                    at = f"tool_choice.allowed_tools.tools.{len(named)}"
                    paths |= dict.fromkeys((at, f"{at}.function"), f"tool_choice.tools.{i}")
                    named.append(self._reference(tool))
            return {"type": kind, "allowed_tools": {"mode": choice.get("mode", "auto"), "tools": named}}, paths
        if _is_hosted(kind):
            raise RequestError(f"{shortened(str(kind))} does not exist here", "tool_choice.type")
        reference = self._reference(choice)
        return reference, {} if reference is choice else {"tool_choice.function": "tool_choice"}

    def _reference(self, tool: Any) -> Any:
        if not isinstance(tool, Mapping):
            return tool
        kind = tool.get("type")
        if not isinstance(kind, str) or kind not in ("function", "custom", *_CLIENT_TOOLS):
            return tool
        name = kind if kind in _CLIENT_TOOLS else tool.get("name")
        if not isinstance(name, str):
            return tool
        known = (one.name for one in self._tools.values() if name in (one.name, one.own_name))
        return {"type": "function", "function": {"name": next(known, name)}}

    def tool(self, name: str) -> CallableTool:
        """Return the tool that the model called by `name`."""
        return self._tools.get(name) or CallableTool(name, "function", name)


def chat_call(item: FunctionCallItem | CustomCallItem | ClientCallItem) -> dict[str, Any]:
    """Return an earlier call as a chat's."""
    arguments: Any
    match item:
        case FunctionCallItem():
            name, arguments = qualified(item.name, item.namespace), item.arguments
        case CustomCallItem():
            name, arguments = qualified(item.name, item.namespace), json.dumps({"input": item.input})
        case ClientCallItem():
            name, arguments = item.type.removesuffix("_call"), json.dumps(item.arguments)
    return {"id": item.call_id or item.id or "", "type": "function", "function": {"name": name, "arguments": arguments}}


def qualified(name: str, namespace: str | None) -> str:
    """Return the name of a function that stands for all of its tool."""
    return f"{namespace.removesuffix('__')}__{name}" if namespace else name


def _is_hosted(kind: object) -> bool:
    return isinstance(kind, str) and any(kind == name or kind.startswith(f"{name}_") for name in _HOSTED)


def _described(tool: Mapping[str, Any]) -> str:
    """Return the description of a tool that takes free text, with the grammar of the text, which is not enforced."""
    return "\n\n".join(_texts(tool))


def _texts(tool: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(description := tool.get("description"), str) and description:
        yield description
    form = tool.get("format")
    if isinstance(form, Mapping) and isinstance(definition := form.get("definition"), str):
        yield f"The input follows this grammar ({form.get('syntax', 'lark')}):\n{definition}"
