"""The routes, and the one place where an exception becomes a response."""

from __future__ import annotations

import asyncio
from collections import Counter

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketvlm import __version__
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.server import openapi
from pocketvlm.server.access_control import AccessControl
from pocketvlm.server.endpoint import Answers
from pocketvlm.server.http_errors import HTTPError, http_error_of, shutting_down
from pocketvlm.server.logs import AccessLog
from pocketvlm.server.metrics import Metrics
from pocketvlm.server.models import Models
from pocketvlm.server.page import Page
from pocketvlm.server.protocols.anthropic import routes as anthropic
from pocketvlm.server.protocols.anthropic.models import list_fields, model_fields
from pocketvlm.server.protocols.chat_completions import ChatCompletions
from pocketvlm.server.protocols.completions import Completions
from pocketvlm.server.protocols.decisions import Decisions
from pocketvlm.server.protocols.error_forms import error_response
from pocketvlm.server.protocols.ollama.routes import OllamaRoutes
from pocketvlm.server.protocols.responses.routes import Responses
from pocketvlm.server.protocols.responses.stored import ResponseStore
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.server.seen import Seen
from pocketvlm.server.served_model import ServedModel
from pocketvlm.server.settings import Settings
from pocketvlm.server.uploads import Uploads

_STATUS = {
    "unloaded": "unloaded",
    "failed": "unloaded",
    "loading": "loading",
    "ready": "loaded",
    "unloading": "unloaded",
}


class Service:
    """`app` is the ASGI application; `answers` and `models` are for the code that runs it."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models = models
        handles = PictureHandles(settings.handles)
        self.answers = Answers(self.models, settings, handles)
        self._uploads = Uploads(handles, settings)
        self._seen = Seen(self.models, handles, settings)
        store = ResponseStore(settings.responses)
        self._metrics = Metrics(self.models, handles, store, __version__)
        ollama = OllamaRoutes(self.models, self.answers, settings)
        responses = Responses(store)
        messages = anthropic.routes(self.answers)
        page = Page() if settings.page else None
        own = [*self._routes(), *ollama.routes(), *responses.routes(self.answers), *messages]
        router = Router([*(page.routes() if page else ()), *own], redirect_slashes=False)
        open_paths = page.paths if page else frozenset()
        self.app = AccessLog(AccessControl(_ErrorResponses(router), settings, open_paths), self._metrics)

    def _routes(self) -> list[Route]:
        routes: list[Route] = []
        chat, count = self.answers.endpoint(ChatCompletions.parse), self.answers.counter(ChatCompletions.parse)
        complete = self.answers.endpoint(Completions.parse)
        decide = self.answers.endpoint(Decisions.parse)
        for prefix in ("/v1", ""):
            routes.append(Route(f"{prefix}/chat/completions", chat, methods=["POST"]))
            routes.append(Route(f"{prefix}/chat/completions/input_tokens", count, methods=["POST"]))
            routes.append(Route(f"{prefix}/completions", complete, methods=["POST"]))
            routes.append(Route(f"{prefix}/decisions", decide, methods=["POST"]))
            routes.append(Route(f"{prefix}/images", self._add_image, methods=["POST"]))
            routes.append(Route(f"{prefix}/images/plan", self._seen.plan, methods=["POST"]))
            routes.append(Route(f"{prefix}/images/{{id}}/seen", self._seen.show, methods=["GET"]))
            routes.append(Route(f"{prefix}/images/{{id}}", self._uploads.show, methods=["GET", "DELETE"]))
            for path, endpoint in (
                ("/models", self._show_models),
                ("/models/{id:path}", self._show_model),
                ("/health", self._show_health),
                ("/metrics", self._show_metrics),
                ("/openapi.json", self._show_openapi),
            ):
                routes.append(Route(prefix + path, endpoint, methods=["GET"]))
        return routes

    async def _add_image(self, request: Request) -> Response:
        if self.answers.draining:
            raise shutting_down()
        return await self._uploads.add(request)

    async def _show_models(self, _: Request) -> Response:
        cards = [_card(model) for model in self.models]
        return JSONResponse({"object": "list", "data": cards, **list_fields(cards)})

    async def _show_model(self, request: Request) -> Response:
        return JSONResponse(_card(self.models.named(request.path_params["id"])))

    async def _show_health(self, _: Request) -> Response:
        if self.answers.draining:
            raise shutting_down()
        engines = await asyncio.to_thread(self.models.statistics)
        states = {engine.state for model, engine in engines if model.state == "ready"} or {"ok"}
        # One model that works is enough: a program that watches the server would end it for all of them.
        status = next(state for state in ("ok", "restarting", "failing") if state in states)
        if status == "failing":
            message = "the engine crashed several times in a row; it is started again after a pause"
            raise HTTPError(503, message, code="engine_crashed", headers={"retry-after": "30"})
        states_of_models = Counter(model.state for model in self.models)
        health = {"status": status, "running": self.models.running, "waiting": self.models.waiting}
        return JSONResponse({**health, "models": states_of_models})

    async def _show_metrics(self, _: Request) -> Response:
        body, kind = await asyncio.to_thread(self._metrics.exposition)
        return Response(body, headers={"content-type": kind})

    async def _show_openapi(self, _: Request) -> Response:
        return JSONResponse(openapi.document())


def _card(model: ServedModel) -> dict[str, object]:
    """Return OpenAI's model object, with more about it in the fields in which other servers say that."""
    facts = model.facts
    status: dict[str, object] = {"value": _STATUS[model.state]}
    if model.state == "failed":
        status |= {"failed": True, "message": model.failure}
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "pocketvlm",
        **model_fields(model),
        "max_model_len": facts.context_size,  # vLLM's
        "context_length": facts.context_size,  # OpenRouter's
        "architecture": {  # OpenRouter's
            "input_modalities": ["text", "image"] if facts.vision else ["text"],
            "output_modalities": ["text"],
        },
        "capabilities": facts.capabilities,  # Ollama's
        "status": status,  # llama-server's, as is `meta`
        "meta": {"n_ctx_train": facts.context_length, "n_params": facts.parameters, "size": facts.size},
        **({"description": f"knows only {facts.knows}"} if facts.knows else {}),  # OpenRouter's
    }


class _ErrorResponses:
    """ASGI middleware that turns what an endpoint raises into a response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        # Some clients join a base URL and a route so that it ends in a slash.
        scope["path"] = scope["path"].rstrip("/") or "/"
        scope["app"] = self  # otherwise the router answers unknown routes itself
        try:
            await self._app(scope, receive, send_and_note)
        except ClientDisconnect:
            RequestRecord.of(scope).left = True
        except Exception as error:  # any error becomes a response
            response = _routing_error(error) if isinstance(error, HTTPException) else http_error_of(error)
            RequestRecord.of(scope).code = response.code
            if not started:
                await error_response(response, scope)(scope, receive, send)


def _routing_error(error: HTTPException) -> HTTPError:
    if error.status_code == 405:
        message = "this route does not accept this method; GET /openapi.json lists both"
        return HTTPError(405, message, None, "method_not_allowed", error.headers or {})
    return HTTPError(404, "no such route; GET /openapi.json lists them", code="not_found")
