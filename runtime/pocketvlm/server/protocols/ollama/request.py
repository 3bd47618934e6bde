"""Requests of Ollama's API as the one request. Unknown fields and options are ignored, as Ollama does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from pocketvlm.errors import RequestError
from pocketvlm.messages import ChatRequest
from pocketvlm.messages.base import Flag, JsonObject, Open, Text, TextOrNull
from pocketvlm.messages.numbers import as_number
from pocketvlm.messages.request import Think
from pocketvlm.server.protocols.exchange import parsed
from pocketvlm.server.protocols.ollama.call_ids import with_call_ids
from pocketvlm.server.protocols.ollama.durations import seconds

# By the fields of ChatRequest. Other options say how to load a model, or name samplers that are not here.
_OPTIONS = {
    "max_tokens": "num_predict",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_MAX_STOPS = 128  # Ollama has no limit
_MARK = "[img]"  # in a message's text: the place of its next picture
_RAW_EXCLUDES = ("system", "template", "context")
_OBJECT: dict[str, Any] = {"type": "object"}


def _format(value: object) -> object:
    """Return Ollama's `format` as a `response_format`."""
    if value is None or value == "":
        return None
    if value == "json":
        return {"type": "json_object"}
    if not isinstance(value, Mapping):
        raise ValueError('must be "json" or a JSON schema')
    return {"type": "json_schema", "schema": value}


def _options(value: object) -> object:
    return {name: option for name, option in value.items() if option is not None} if isinstance(value, dict) else value


class _Body(Open):
    """What both routes take. Durations are in seconds, those below zero mean forever."""

    model: Text | None = None
    stream: Flag | None = None
    format: Annotated[
        dict[str, Any] | None, BeforeValidator(_format, json_schema_input_type=JsonObject | str | None)
    ] = None
    options: Annotated[
        dict[str, Any], BeforeValidator(lambda value: _options(value or {})), WithJsonSchema(_OBJECT)
    ] = Field(default_factory=dict)
    keep_alive: Annotated[float | None, BeforeValidator(seconds, json_schema_input_type=float | str | None)] = None
    think: Think | None = None
    logprobs: Flag | None = None
    top_logprobs: int | None = None

    def request(self, model: str | None, messages: list[Any], paths: Mapping[str, str], **more: Any) -> ChatRequest:
        """Return the request with these messages. Raises RequestError with the paths of what the client sent."""
        fields = {name: self.options[option] for name, option in _OPTIONS.items() if option in self.options}
        limit = as_number(fields.get("max_tokens"))
        if isinstance(limit, int) and limit < 1:
            del fields["max_tokens"]
        fields |= {"messages": messages, "model": model, "response_format": self.format, "think": self.think, **more}
        if self.logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return parsed(fields, paths).model_copy(update={"stop": self._stops()})

    def paths(self, own: Mapping[str, str]) -> dict[str, str]:
        """Return where fields of ChatRequest are in the body; `own` has those of the messages."""
        options = {name: f"options.{option}" for name, option in _OPTIONS.items()}
        schemas = {f"response_format.{field}": "format" for field in ("schema", "type")}
        return {**options, **schemas, "response_format": "format", **own}

    def _stops(self) -> tuple[str, ...] | None:
        value = self.options.get("stop")
        stops = [value] if isinstance(value, str) else value or []
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise RequestError("must be a list of strings", "options.stop")
        if len(stops) > _MAX_STOPS:
            raise RequestError(f"must have at most {_MAX_STOPS} items", "options.stop")
        return tuple(filter(None, stops)) or None


class ChatBody(_Body):
    """A request of /api/chat. Without messages, it loads the model, or unloads it where `keep_alive` is 0."""

    messages: Annotated[tuple[Any, ...] | None, WithJsonSchema({"type": "array", "items": _OBJECT})] = None
    tools: Annotated[Any, WithJsonSchema({"type": ["array", "null"], "items": _OBJECT})] = None

    @property
    def asks(self) -> bool:
        """Whether there is something to answer."""
        return bool(self.messages)

    def read(self, model: str | None) -> tuple[ChatRequest, dict[str, str]]:
        """Return the request, and the paths of its fields in the body."""
        messages: list[Any] = []
        paths: dict[str, str] = {}
        for i, message in enumerate(with_call_ids(self.messages or ())):
            at = f"messages.{i}"
            if isinstance(message, Mapping):
                message, places = _with_pictures(message, at)
                paths |= places
            messages.append(message)
        all_paths = self.paths(paths)
        return self.request(model, messages, all_paths, tools=self.tools), all_paths


class GenerateBody(_Body):
    """A request of /api/generate. Without a prompt, it loads the model, or unloads it where `keep_alive` is 0.

    With `raw`, the prompt is all that the model gets. `context`, which Ollama no longer wants either, is ignored.
    """

    prompt: TextOrNull = ""
    system: TextOrNull = ""
    images: tuple[str, ...] | None = None
    raw: Flag | None = None
    suffix: TextOrNull = ""
    template: TextOrNull = ""
    context: Any = None

    @property
    def asks(self) -> bool:
        """Whether there is something to answer."""
        return bool(self.prompt)

    def read(self, model: str | None) -> tuple[ChatRequest, dict[str, str]]:
        """Return the request, and the paths of its fields in the body."""
        if self.suffix:
            raise RequestError("is not supported; send a raw prompt in the model's form", "suffix")
        if self.raw and (given := next((name for name in _RAW_EXCLUDES if getattr(self, name)), None)):
            raise RequestError("cannot be combined with raw: true", given)
        if self.template:
            raise RequestError("the model's own template is used; to use another, send a raw prompt", "template")
        messages = [{"role": "system", "content": self.system}] if self.system else []
        message, places = _with_pictures({"role": "user", "content": self.prompt, "images": self.images}, "", "prompt")
        at = f"messages.{len(messages)}"
        paths = {f"{at}{place}": path.removeprefix(".") for place, path in places.items()}
        all_paths = self.paths(
            {"messages": "prompt", "messages.0.content": "system", **paths, f"{at}.content": "prompt", at: "prompt"}
        )
        return self.request(model, [*messages, message], all_paths), all_paths


class ShowBody(Open):
    """A request of /api/show. `name` is the older field."""

    model: Text | None = None
    name: Text | None = None


def _with_pictures(
    message: Mapping[str, Any], at: str, text_field: str = "content"
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a message with its pictures among its parts, and where these are in the message at the path `at`.

    Pictures stand where the text has `[img]`; where there are more pictures than marks, the last ones come first.
    """
    known = {name: value for name, value in message.items() if name not in ("images", "tool_name")}
    if isinstance(role := known.get("role"), str):
        known["role"] = role.lower()
    if message.get("tool_name") is not None:
        known.setdefault("name", message["tool_name"])
    images, content = message.get("images"), message.get("content")
    if not images or not isinstance(content, str | None):
        return ({**known, "images": images} if images else known), {}
    if not isinstance(images, list | tuple):
        raise RequestError("must be a list", f"{at}.images".removeprefix("."))
    texts = (content or "").split(_MARK, len(images))
    parts: list[dict[str, Any]] = []
    paths: dict[str, str] = {}

    def add(part: dict[str, Any], path: str) -> None:
        place = f"{at}.content.{len(parts)}"
        for key in ("", ".text", ".data", ".type"):
            paths[place + key] = path
        parts.append(part)

    def add_picture(number: int) -> None:
        if not isinstance(images[number], str):
            raise RequestError("must be base64 text", f"{at}.images.{number}".removeprefix("."))
        add({"type": "image", "data": images[number]}, f"{at}.images.{number}")

    for number in range(len(texts) - 1, len(images)):
        add_picture(number)
    for number, text in enumerate(texts):
        if text:
            add({"type": "text", "text": text}, f"{at}.{text_field}")
        if number < len(texts) - 1:
            add_picture(number)
    return {**known, "content": parts}, paths
