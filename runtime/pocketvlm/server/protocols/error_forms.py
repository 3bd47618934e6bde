"""An error in the form of the API that was called: each has its own, also for what is refused before its code runs."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.operation import Component

OPENAI_ERROR = Component(
    "Error",
    {
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
    },
)
ANTHROPIC_ERROR = Component(
    "AnthropicError",
    {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
)
OLLAMA_ERROR = Component(
    "OllamaError",
    {
        "type": "object",
        "required": ["error"],
        "additionalProperties": False,
        "properties": {"error": {"type": "string"}},
    },
)
# Anthropic's names of kinds of errors; others are invalid_request_error and, from 500, api_error.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(error: HTTPError) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(error.status) or ("api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_error(error: HTTPError) -> dict[str, Any]:
    return {"error": error.message}


def error_body(error: HTTPError, path: str) -> bytes:
    """Return the body of an error on the route `path`, in ASCII: a message may quote half of a surrogate pair."""
    if f"{path.removeprefix('/v1')}/".startswith("/messages/"):
        return json.dumps(anthropic_error(error)).encode()
    if path.startswith("/api/"):
        return json.dumps(ollama_error(error)).encode()
    return error.json()


def error_response(error: HTTPError, scope: Scope) -> Response:
    headers = dict(error.headers)
    return Response(error_body(error, scope["path"]), error.status, headers, media_type="application/json")
