"""Files that a client uploads once and then names by a handle: POST /images, GET and DELETE /images/{id}."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pocketvlm.documents.handles import keep_file
from pocketvlm.pictures.handles import PictureHandle, PictureHandles
from pocketvlm.server.body import read_body
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.settings import Settings

_MAX_UPLOADS = 8  # bodies in memory; a slow one keeps others waiting until its read timeout
_MAX_DECODES = 2  # files decoded at a time, to check that they are pictures


class Uploads:
    def __init__(self, handles: PictureHandles, settings: Settings) -> None:
        self._handles = handles
        self._settings = settings
        self._bodies = asyncio.Semaphore(_MAX_UPLOADS)
        self._decoding = asyncio.Semaphore(_MAX_DECODES)

    async def add(self, request: Request) -> Response:
        """Store the body, which is the file itself. Multipart forms are refused: they would need a parser."""
        if request.headers.get("content-type", "").lower().startswith("multipart/"):
            message = "send the file itself as the body, as curl --data-binary @FILE does; forms are not read"
            raise HTTPError(415, message, code="unsupported_media_type")
        settings = self._settings
        async with self._bodies:
            data = await read_body(
                request.scope, request.receive, max_body=settings.max_body, timeout=settings.read_timeout
            )
            async with self._decoding:
                handle = await asyncio.to_thread(self._keep, data)
        return JSONResponse(_object(handle))

    async def show(self, request: Request) -> Response:
        id = request.path_params["id"]
        if request.method == "DELETE":
            self._handles.remove(id, "id")
            return JSONResponse({"id": id, "object": "image", "deleted": True})
        return JSONResponse(_object(self._handles.find(id, "id")))

    def _keep(self, data: bytes) -> PictureHandle:
        return keep_file(self._handles, data, None, self._settings.documents, self._settings.max_pixels)


def _object(handle: PictureHandle) -> dict[str, object]:
    return {"object": "image", **asdict(handle)}
