"""The OpenAPI document, made from the schema that validates requests and builds answers."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from pocketvlm import __version__
from pocketvlm.messages import ChatCompletion, ChatCompletionChunk, ChatRequest

_REFERENCE = "#/components/schemas/{model}"
_PREFIXES = ("/v1", "")
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "the path of the field that is wrong"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MODEL: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_MODELS: dict[str, Any] = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"$ref": _REFERENCE.format(model="Model")}},
    },
}
_IMAGE: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "width", "height", "bytes", "created_at", "expires_at"],
    "properties": {
        "id": {
            "type": "string",
            "pattern": "^sha256:[0-9a-f]{64}$",
            "description": "the file's hash; a url in messages",
        },
        "object": {"const": "image"},
        **{
            name: {"type": "integer", "minimum": 0} for name in ("width", "height", "bytes", "created_at", "expires_at")
        },
    },
}
_INPUT_TOKENS: dict[str, Any] = {
    "type": "object",
    "required": ["object", "input_tokens"],
    "properties": {"object": {"const": "response.input_tokens"}, "input_tokens": {"type": "integer", "minimum": 1}},
}
_DELETED: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "deleted"],
    "properties": {"id": {"type": "string"}, "object": {"const": "image"}, "deleted": {"const": True}},
}
_HEALTH: dict[str, Any] = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}, "running": {"type": "integer"}, "waiting": {"type": "integer"}},
}
_REASONS = {
    "400": "The request is wrong: not JSON, a field, a picture, or longer than the context.",
    "401": "No key, or a wrong one.",
    "403": "A Host or Origin header that is not served.",
    "404": "No such route, model or picture.",
    "405": "The route does not accept this method.",
    "408": "The body took too long.",
    "413": "The body is too large.",
    "415": "The body is compressed, or a form.",
    "429": "The queue is full.",
    "500": "The server failed; code engine_crashed where native code crashed, model_error for a fault of the model.",
    "503": "The server is shutting down; code system_limit where the system gives no memory, thread or file.",
}


@cache
def document() -> dict[str, Any]:
    """Return the document, in OpenAPI 3.1."""
    _, definitions = models_json_schema(
        [(ChatRequest, "validation"), (ChatCompletion, "serialization"), (ChatCompletionChunk, "serialization")],
        ref_template=_REFERENCE,
    )
    schemas = definitions["$defs"]
    for name in ("path", "image"):  # in Python only
        del schemas["ImagePart"]["properties"][name]
    schemas |= {"Error": _ERROR, "Model": _MODEL, "Models": _MODELS, "Health": _HEALTH}
    schemas |= {"Image": _IMAGE, "DeletedImage": _DELETED, "InputTokens": _INPUT_TOKENS}
    paths: dict[str, Any] = {}
    for prefix in _PREFIXES:
        paths[f"{prefix}/chat/completions"] = {"post": _completions(prefix)}
        paths[f"{prefix}/chat/completions/input_tokens"] = {"post": _input_tokens(prefix)}
        paths[f"{prefix}/images"] = {"post": _add_image(prefix)}
        shown = _get("getImage", "Describe an uploaded picture.", prefix, _json("Image"))
        removed = _get("deleteImage", "Delete an uploaded picture.", prefix, _json("DeletedImage"))
        paths[f"{prefix}/images/{{id}}"] = {"get": _with_id(shown), "delete": _with_id(removed)}
        paths[f"{prefix}/models"] = {"get": _get("listModels", "The served model.", prefix, _json("Models"))}
        paths[f"{prefix}/models/{{id}}"] = {"get": _model(prefix)}
        paths[f"{prefix}/health"] = {
            "get": _get("health", "Whether the server is up.", prefix, _json("Health"), key=False)
        }
        text = {"text/plain": {"schema": {"type": "string"}}}
        paths[f"{prefix}/metrics"] = {"get": _get("metrics", "Metrics for Prometheus.", prefix, text)}
        anything = {"application/json": {"schema": {"type": "object"}}}
        paths[f"{prefix}/openapi.json"] = {"get": _get("openapi", "This document.", prefix, anything)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "pocketvlm", "version": __version__, "description": "Image-text chat on this machine."},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _completions(prefix: str) -> dict[str, Any]:
    answer = _json("ChatCompletion")
    # Before OpenAPI 3.2 the schema of a stream is that of each event.
    chunk = {"$ref": _REFERENCE.format(model="ChatCompletionChunk")}
    payload = {"anyOf": [chunk, {"$ref": _REFERENCE.format(model="Error")}]}
    json_text = {"type": "string", "contentMediaType": "application/json", "contentSchema": payload}
    event = {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, json_text]}},
    }
    answer["text/event-stream"] = {"schema": event}
    return {
        "operationId": _name("createChatCompletion", prefix),
        "summary": "Answer a chat. With stream: true, as server-sent events that end with [DONE].",
        "requestBody": {"required": True, "content": _json("ChatRequest")},
        "responses": {"200": {"description": "The answer.", "content": answer}, **_errors(*_REASONS)},
    }


def _input_tokens(prefix: str) -> dict[str, Any]:
    return {
        "operationId": _name("countChatCompletionTokens", prefix),
        "summary": "Count the tokens of a chat's prompt, pictures included. Nothing is encoded or evaluated.",
        "requestBody": {"required": True, "content": _json("ChatRequest")},
        "responses": {"200": {"description": "The count.", "content": _json("InputTokens")}, **_errors(*_REASONS)},
    }


def _model(prefix: str) -> dict[str, Any]:
    return _with_id(_get("getModel", "One model.", prefix, _json("Model")))


def _with_id(operation: dict[str, Any]) -> dict[str, Any]:
    operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _add_image(prefix: str) -> dict[str, Any]:
    file = {"schema": {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}}
    reasons = ("400", "401", "403", "404", "405", "408", "413", "415", "500", "503")
    return {
        "operationId": _name("addImage", prefix),
        "summary": "Upload a picture once; its id is then a url in messages.",
        "requestBody": {"required": True, "content": {"application/octet-stream": file, "image/*": file}},
        "responses": {"200": {"description": "The picture.", "content": _json("Image")}, **_errors(*reasons)},
    }


def _get(name: str, summary: str, prefix: str, content: dict[str, Any], *, key: bool = True) -> dict[str, Any]:
    reasons = ("400", "401", "403", "404", "405", "408", "500", "503")
    operation: dict[str, Any] = {
        "operationId": _name(name, prefix),
        "summary": summary,
        "responses": {"200": {"description": "Success.", "content": content}, **_errors(*reasons)},
    }
    if not key:
        operation["security"] = []
    return operation


def _errors(*statuses: str) -> dict[str, Any]:
    return {status: {"description": _REASONS[status], "content": _json("Error")} for status in statuses}


def _json(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model)}}}


def _name(operation: str, prefix: str) -> str:
    return operation + ("V1" if prefix else "")
