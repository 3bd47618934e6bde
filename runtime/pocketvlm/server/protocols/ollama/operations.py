"""Ollama's routes, as the OpenAPI document describes them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pocketvlm.server.operation import Component, Operation, Stream
from pocketvlm.server.protocols.error_forms import OLLAMA_ERROR
from pocketvlm.server.protocols.ollama.request import ChatBody, GenerateBody, ShowBody

_TEXT: Mapping[str, Any] = {"type": "string"}
_COUNT: Mapping[str, Any] = {"type": "integer", "minimum": 0}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "object", "required": [*required], "properties": {**required, **(optional or {})}}


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_CALL = _object({"id": _TEXT, "function": _object({"index": _COUNT, "name": _TEXT, "arguments": {"type": "object"}})})
_MESSAGE = _object({"role": {"const": "assistant"}, "content": _TEXT}, {"thinking": _TEXT, "tool_calls": _list(_CALL)})
_PART = {"model": _TEXT, "created_at": {"type": "string", "format": "date-time"}, "done": {"type": "boolean"}}
_REASONS = ["stop", "length", "load", "unload"]
_NUMBERS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")  # nanoseconds
_END = {
    "done_reason": {"enum": _REASONS},
    **dict.fromkeys((*_NUMBERS, "prompt_eval_count", "eval_count"), _COUNT),
    "logprobs": _list({"type": "object"}),
    "status": {"type": "string", "description": "what a stream waits for, while there is nothing to send"},
    **dict.fromkeys(("not_enforced", "notes"), _list(_TEXT)),
}
_CHAT = Component("OllamaChat", _object({**_PART, "message": _MESSAGE}, _END))
_GENERATED = Component("OllamaGenerated", _object({**_PART, "response": _TEXT}, {"thinking": _TEXT, **_END}))
_FORM = _object(dict.fromkeys(("format", "family", "parameter_size", "quantization_level"), _TEXT))
_CARD = _object(
    {
        **dict.fromkeys(("name", "model", "modified_at", "digest"), _TEXT),
        "size": _COUNT,
        "details": _FORM,
        "capabilities": _list(_TEXT),
    },
    {"size_vram": _COUNT, "expires_at": _TEXT, "context_length": _COUNT},
)
_CARDS = Component("OllamaModels", _object({"models": _list(_CARD)}))
_DETAILS = Component(
    "OllamaModel",
    _object(
        {
            "details": _FORM,
            "model_info": {"type": "object"},
            "capabilities": _list(_TEXT),
            "template": _TEXT,
            "modified_at": _TEXT,
        }
    ),
)
_VERSION = Component("OllamaVersion", _object({"version": _TEXT}))

_operation = partial(Operation, error=OLLAMA_ERROR, prefixes=("",))
_post, _get = partial(_operation, method="post"), partial(_operation, method="get")
OPERATIONS = (
    _post(
        path="/api/chat",
        name="ollamaChat",
        summary="Answer a chat, in lines unless stream is false. Without messages: load or unload the model.",
        request=ChatBody,
        answer=_CHAT,
        stream=Stream((_CHAT, OLLAMA_ERROR), media_type="application/x-ndjson"),
        success="The answer.",
    ),
    _post(
        path="/api/generate",
        name="ollamaGenerate",
        summary="Answer a prompt, in lines unless stream is false. Without one: load or unload the model.",
        request=GenerateBody,
        answer=_GENERATED,
        stream=Stream((_GENERATED, OLLAMA_ERROR), media_type="application/x-ndjson"),
        success="The answer.",
    ),
    _post(path="/api/show", name="ollamaShow", summary="One model.", request=ShowBody, answer=_DETAILS),
    _get(path="/api/tags", name="ollamaTags", summary="The served models.", answer=_CARDS),
    _get(path="/api/ps", name="ollamaPs", summary="The models that are loaded.", answer=_CARDS),
    _get(path="/api/version", name="ollamaVersion", summary="The version of Ollama's API.", answer=_VERSION),
)
