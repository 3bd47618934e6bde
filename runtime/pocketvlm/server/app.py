"""The routes, and the one place where an exception becomes a response."""

from __future__ import annotations

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketvlm import __version__
from pocketvlm.chat.vlm import VLM
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.server import openapi
from pocketvlm.server.access_control import AccessControl
from pocketvlm.server.admission import Admission
from pocketvlm.server.chat_endpoint import ChatEndpoint, unknown_model
from pocketvlm.server.http_errors import HTTPError, http_error_of, shutting_down
from pocketvlm.server.logs import AccessLog
from pocketvlm.server.metrics import Metrics
from pocketvlm.server.request_record import RequestRecord
from pocketvlm.server.settings import Settings
from pocketvlm.server.uploads import Uploads


class Service:
    """`app` is the ASGI application; `chat` and `admission` are for the code that runs it."""

    def __init__(self, vlm: VLM, settings: Settings) -> None:
        self._vlm = vlm
        self._started = int(time.time())
        self.admission = Admission(settings.slots, settings.queue)
        handles = PictureHandles(settings.handles)
        self.chat = ChatEndpoint(vlm, settings, self.admission, handles)
        self._uploads = Uploads(handles, settings)
        self._metrics = Metrics(self.admission, vlm, handles, __version__)
        router = Router(self._routes(), redirect_slashes=False)
        self.app = AccessLog(AccessControl(_ErrorResponses(router), settings), self._metrics)

    def _routes(self) -> list[Route]:
        routes: list[Route] = []
        for prefix in ("/v1", ""):
            routes.append(Route(f"{prefix}/chat/completions", self.chat, methods=["POST"]))
            routes.append(Route(f"{prefix}/images", self._add_image, methods=["POST"]))
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
        if self.chat.draining:
            raise shutting_down()
        return await self._uploads.add(request)

    async def _show_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _show_model(self, request: Request) -> Response:
        if request.path_params["id"] != self._vlm.info.name:
            raise unknown_model([self._vlm.info.name])
        return JSONResponse(self._card())

    def _card(self) -> dict[str, object]:
        return {"id": self._vlm.info.name, "object": "model", "created": self._started, "owned_by": "pocketvlm"}

    async def _show_health(self, _: Request) -> Response:
        if self.chat.draining:
            raise shutting_down()
        state = (await asyncio.to_thread(self._vlm.statistics)).state
        if state == "failing":
            message = "the engine crashed several times in a row; it is started again after a pause"
            raise HTTPError(503, message, code="engine_crashed", headers={"retry-after": "30"})
        return JSONResponse({"status": state, "running": self.admission.running, "waiting": self.admission.waiting})

    async def _show_metrics(self, _: Request) -> Response:
        body, kind = await asyncio.to_thread(self._metrics.exposition)
        return Response(body, headers={"content-type": kind})

    async def _show_openapi(self, _: Request) -> Response:
        return JSONResponse(openapi.document())


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
                await response.response()(scope, receive, send)


def _routing_error(error: HTTPException) -> HTTPError:
    if error.status_code == 405:
        message = "this route does not accept this method; GET /openapi.json lists both"
        return HTTPError(405, message, None, "method_not_allowed", error.headers or {})
    return HTTPError(404, "no such route; GET /openapi.json lists them", code="not_found")
