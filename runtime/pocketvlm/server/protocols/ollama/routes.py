"""The routes of Ollama's API: what it answers, what it says about the models, and what it refuses."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pocketvlm.messages.field_errors import validated
from pocketvlm.server.body import read_object
from pocketvlm.server.endpoint import Answers
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.models import Models
from pocketvlm.server.protocols.ollama.answer import Chat, Generate, time_text
from pocketvlm.server.protocols.ollama.names import canonical, listed
from pocketvlm.server.protocols.ollama.request import ChatBody, GenerateBody, ShowBody
from pocketvlm.server.served_model import ServedModel
from pocketvlm.server.settings import Settings

VERSION = "0.33.0"  # of the API: clients ask for a version that has what they need
_FOREVER = 1e10  # seconds since 1970: in the year 2286
# Would download something, or change what is on the disk.
_CHANGES = {
    "/api/pull": "POST",
    "/api/push": "POST",
    "/api/create": "POST",
    "/api/copy": "POST",
    "/api/delete": "DELETE",
    "/api/blobs/{digest}": "POST",
}
_EMBEDDINGS = ("/api/embed", "/api/embeddings", "/v1/embeddings", "/embeddings")


class OllamaRoutes:
    def __init__(self, models: Models, answers: Answers, settings: Settings) -> None:
        self._models = models
        self._answers = answers
        self._settings = settings

    def routes(self) -> list[Route]:
        chat, generate = self._answers.endpoint(self._chat), self._answers.endpoint(self._generate)
        return [
            Route("/api/chat", chat, methods=["POST"]),
            Route("/api/generate", generate, methods=["POST"]),
            Route("/api/show", self._show, methods=["POST"]),
            Route("/api/tags", self._list, methods=["GET"]),
            Route("/api/ps", self._list_loaded, methods=["GET"]),
            Route("/api/version", _show_version, methods=["GET"]),
            *(Route(path, _refuse_change, methods=[method]) for path, method in _CHANGES.items()),
            *(Route(path, _refuse_embeddings, methods=["POST"]) for path in _EMBEDDINGS),
            Route("/", say_hello, methods=["GET"]),
        ]

    def _chat(self, body: dict[str, Any]) -> Chat:
        read = validated(ChatBody, body)
        return Chat(read, self._exact(read.model))

    def _generate(self, body: dict[str, Any]) -> Generate:
        read = validated(GenerateBody, body)
        return Generate(read, self._exact(read.model))

    def _exact(self, name: str | None) -> str | None:
        """Return the exact name of the model that a client calls so; the name itself where there is none."""
        names = [model.name for model in self._models]
        if name is None or name in names:
            return name
        return next((known for known in names if canonical(known) == canonical(name)), name)

    async def _show(self, request: Request) -> Response:
        settings = self._settings
        body = await read_object(
            request.scope,
            request.receive,
            partial(validated, ShowBody),
            max_body=settings.max_body,
            timeout=settings.read_timeout,
        )
        model = self._models.asked(self._exact(body.model or body.name))
        return JSONResponse(_details(model))

    async def _list(self, _: Request) -> Response:
        return JSONResponse({"models": [_card(model) for model in self._models]})

    async def _list_loaded(self, _: Request) -> Response:
        loaded = [model for model in self._models if model.state == "ready"]
        sizes = await asyncio.to_thread(lambda: [model.measured_memory() for model in loaded])
        uses = [_card(model) | _use(model, size) for model, size in zip(loaded, sizes, strict=True)]
        return JSONResponse({"models": uses})


def _card(model: ServedModel) -> dict[str, Any]:
    facts, name = model.facts, listed(model.name)
    return {
        "name": name,
        "model": name,
        "modified_at": time_text(facts.modified),
        "size": facts.size,
        "digest": hashlib.sha256(facts.fingerprint.encode()).hexdigest(),
        "details": _form(model),
        "capabilities": list(facts.capabilities),
    }


def _form(model: ServedModel) -> dict[str, Any]:
    facts = model.facts
    return {
        "parent_model": "",
        "format": "gguf",
        "family": facts.architecture,
        # Older clients know by "clip" that a model sees.
        "families": [facts.architecture, *(["clip"] if facts.vision else [])],
        "parameter_size": _rounded(facts.parameters),
        "quantization_level": facts.quantization,
        "context_length": facts.context_size,
    }


def _use(model: ServedModel, measured: int | None) -> dict[str, Any]:
    facts, expires, on_device = model.facts, model.expires_at, model.device_bytes
    # The process of the engine has what is not on a GPU.
    size = measured + on_device if measured else max(model.source.memory or facts.size, on_device)
    return {
        "size": size,
        "size_vram": on_device,
        "expires_at": time_text(_FOREVER if expires is None else min(expires, _FOREVER)),
        "context_length": facts.context_size,
    }


def _details(model: ServedModel) -> dict[str, Any]:
    facts = model.facts
    return {
        "details": _form(model),
        "model_info": {
            "general.architecture": facts.architecture,
            "general.basename": facts.name,
            "general.parameter_count": facts.parameters,
            # What a request here has. Clients that know more would send more than fits.
            f"{facts.architecture}.context_length": facts.context_size,
        },
        "capabilities": list(facts.capabilities),
        "template": facts.template,
        "modified_at": time_text(facts.modified),
    }


def _rounded(count: int) -> str:
    """Return a number of parameters as Ollama writes it: 135M, 8.0B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}" if unit != "K" else f"{count / size:.0f}K"
    return str(count)


async def _show_version(_: Request) -> Response:
    return JSONResponse({"version": VERSION})


async def say_hello(request: Request) -> Response:
    """Answer what clients ask to find out whether a server is there. Browsers get none without the page."""
    if "text/html" in request.headers.get("accept", ""):
        raise HTTPError(404, "no such route; GET /openapi.json lists them", code="not_found")
    return PlainTextResponse("Ollama is running")


async def _refuse_change(request: Request) -> Response:
    raise HTTPError(
        403,
        f"{request.url.path}: models are not downloaded, changed or removed over HTTP; use `pocketvlm pull`",
        code="not_supported",
    )


async def _refuse_embeddings(_: Request) -> Response:
    raise HTTPError(501, "embeddings are not supported", code="not_supported")
