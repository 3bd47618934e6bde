"""The OpenAPI document, made from the schemas that validate requests and build answers."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from pocketvlm import __version__
from pocketvlm.server.operation import Component, Operation, Schema
from pocketvlm.server.protocols import chat_completions, completions, decisions
from pocketvlm.server.protocols.anthropic import models as anthropic_models
from pocketvlm.server.protocols.anthropic import routes as anthropic
from pocketvlm.server.protocols.error_forms import OPENAI_ERROR
from pocketvlm.server.protocols.ollama import operations as ollama
from pocketvlm.server.protocols.responses import routes as responses
from pocketvlm.server.seen import PLAN, PlanQuestion

_REFERENCE = "#/components/schemas/{model}"
_MODEL = Component(
    "Model",
    {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": {"type": "string"},
            **anthropic_models.MODEL_SCHEMA,
            "max_model_len": {"type": "integer", "description": "tokens of a request's context; context_length, too"},
            "context_length": {"type": "integer"},
            "description": {"type": "string", "description": "what a model knows that knows little"},
            "architecture": {
                "type": "object",
                "properties": {
                    name: {"type": "array", "items": {"enum": ["text", "image"]}}
                    for name in ("input_modalities", "output_modalities")
                },
            },
            "capabilities": {"type": "array", "items": {"enum": ["completion", "vision", "tools", "thinking"]}},
            "status": {
                "type": "object",
                "required": ["value"],
                "properties": {
                    "value": {"enum": ["unloaded", "loading", "loaded"]},
                    "failed": {"const": True, "description": "it could not be loaded; a later request tries again"},
                    "message": {"type": "string"},
                },
            },
            "meta": {
                "type": "object",
                "properties": {name: {"type": "integer"} for name in ("n_ctx_train", "n_params", "size")},
            },
        },
    },
)
_MODELS = Component(
    "Models",
    {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": _REFERENCE.format(model="Model")}},
            **anthropic_models.LIST_SCHEMA,
        },
    },
)
_IMAGE = Component(
    "Image",
    {
        "type": "object",
        "required": ["id", "object", "width", "height", "pages", "bytes", "created_at", "expires_at"],
        "properties": {
            "id": {
                "type": "string",
                "pattern": "^sha256:[0-9a-f]{64}$",
                "description": "the file's hash; a url in messages, also with #page=3 behind it",
            },
            "object": {"const": "image"},
            **{name: {"type": "integer", "minimum": 0} for name in ("bytes", "created_at", "expires_at")},
            **{
                name: {"type": "integer", "minimum": 0, "description": "in pixels, of the first page"}
                for name in ("width", "height")
            },
            "pages": {"type": "integer", "minimum": 1, "description": "pages or frames of the file"},
        },
    },
)
_DELETED = Component(
    "DeletedImage",
    {
        "type": "object",
        "required": ["id", "object", "deleted"],
        "properties": {"id": {"type": "string"}, "object": {"const": "image"}, "deleted": {"const": True}},
    },
)
_HEALTH = Component(
    "Health",
    {
        "type": "object",
        "required": ["status"],
        "properties": {
            "status": {"type": "string"},
            "running": {"type": "integer"},
            "waiting": {"type": "integer"},
            "models": {
                "type": "object",
                "description": "the number of models in each state",
                "propertyNames": {"enum": ["unloaded", "loading", "ready", "unloading", "failed"]},
                "additionalProperties": {"type": "integer"},
            },
        },
    },
)
_FILE = {"schema": {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}}
_PNG = {"image/png": {"schema": {"type": "string", "format": "binary", "contentMediaType": "image/png"}}}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_OBJECT = {"application/json": {"schema": {"type": "object"}}}

_operation = partial(Operation, error=OPENAI_ERROR)
_get = partial(_operation, method="get")
OPERATIONS = (
    *chat_completions.OPERATIONS,
    *completions.OPERATIONS,
    *decisions.OPERATIONS,
    *anthropic.OPERATIONS,
    *responses.OPERATIONS,
    *ollama.OPERATIONS,
    _operation(
        method="post",
        path="/images",
        name="addImage",
        summary="Upload a picture, PDF or video once; its id is then a url in messages.",
        request=dict.fromkeys(("application/octet-stream", "image/*", "application/pdf", "video/*"), _FILE),
        answer=_IMAGE,
        success="The file.",
        without=("429",),
    ),
    _get(path="/images/{id}", name="getImage", summary="Describe an uploaded file.", answer=_IMAGE),
    _operation(
        method="delete",
        path="/images/{id}",
        name="deleteImage",
        summary="Delete an uploaded file.",
        answer=_DELETED,
    ),
    _operation(
        method="post",
        path="/images/plan",
        name="planImage",
        summary="How a model would see a picture of a size, and what that takes. Nothing is encoded or evaluated.",
        request=PlanQuestion,
        answer=PLAN,
        success="The plan.",
        without=("429",),
    ),
    _get(
        path="/images/{id}/seen",
        name="seeImage",
        summary="An uploaded picture as a model gets it; the query may have page, model, detail, max_image_tokens.",
        answer=_PNG,
    ),
    _get(path="/models", name="listModels", summary="The served models.", answer=_MODELS),
    _get(path="/models/{id}", name="getModel", summary="One model.", answer=_MODEL),
    _get(path="/health", name="health", summary="Whether the server is up.", answer=_HEALTH, needs_key=False),
    _get(path="/metrics", name="metrics", summary="Metrics for Prometheus.", answer=_TEXT),
    _get(path="/openapi.json", name="openapi", summary="This document.", answer=_OBJECT),
)


@cache
def document() -> dict[str, Any]:
    """Return the document, in OpenAPI 3.1."""
    used = {pair: None for operation in OPERATIONS for pair in operation.schemas()}
    components = {schema.name: dict(schema.schema) for schema, _ in used if isinstance(schema, Component)}
    models = [(schema, mode) for schema, mode in used if not isinstance(schema, Component)]
    references, definitions = models_json_schema(models, ref_template=_REFERENCE)
    schemas = definitions["$defs"]
    for part in ("ImagePart", "FilePart"):
        for name in ("path", "image"):  # in Python only
            del schemas[part]["properties"][name]

    def reference(schema: Schema, mode: JsonSchemaMode) -> dict[str, Any]:
        if isinstance(schema, Component):
            return {"$ref": _REFERENCE.format(model=schema.name)}
        return references[schema, mode]

    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        for prefix in operation.prefixes:
            described = operation.describe(prefix, reference)
            paths.setdefault(prefix + operation.path, {})[operation.method] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "pocketvlm", "version": __version__, "description": "Image-text chat on this machine."},
        "paths": paths,
        "components": {
            "schemas": {**schemas, **components},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"key": []}, {"header": []}],
    }
