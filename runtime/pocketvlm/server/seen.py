"""How a model sees pictures: POST /images/plan by their size alone, GET /images/{id}/seen with their pixels."""

from __future__ import annotations

import asyncio
import io
from functools import partial
from typing import Annotated

from PIL import Image
from pydantic import Field, Strict
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from pocketvlm.documents.fit import fit_for
from pocketvlm.documents.open_document import open_part
from pocketvlm.errors import ImageError, ImageTooLargeError, RequestError
from pocketvlm.messages import Detail, FilePart
from pocketvlm.messages.base import Frozen
from pocketvlm.messages.field_errors import validated
from pocketvlm.messages.numbers import AnyNumber, Count, Limit
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.server.body import read_object
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.model_facts import ModelFacts
from pocketvlm.server.models import Models
from pocketvlm.server.operation import Component
from pocketvlm.server.settings import Settings
from pocketvlm.vision.family import plan_picture, token_limit
from pocketvlm.vision.seen import seen_pixels, tile_grid

_MAX_DRAWN = 2  # pictures at a time: each is decoded, resized and encoded
_Edge = Annotated[int, Strict(), Field(ge=1, le=1_000_000), AnyNumber()]


class PictureOptions(Frozen):
    """How a message would show a picture to a model."""

    model: str | None = None
    detail: Detail = "auto"
    max_image_tokens: Limit = None


class SeenQuestion(PictureOptions):
    """How a model sees a page of an uploaded file, or a frame of a video."""

    page: Count = 1


class PlanQuestion(PictureOptions):
    """How a model would see a picture of this size, in pixels."""

    width: _Edge
    height: _Edge


_SIZE = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
PLAN = Component(
    "ImagePlan",
    {
        "type": "object",
        "required": ["object", "model", "original_size", "used_size", "canvas_size", "grid", "tiles", "tokens"],
        "properties": {
            "object": {"const": "image.plan"},
            "model": {"type": "string"},
            "original_size": _SIZE,
            "used_size": {**_SIZE, "description": "the size that the picture is resized to"},
            "canvas_size": {**_SIZE, "description": "the size that it is padded to, mostly the same"},
            "grid": {**_SIZE, "description": "columns and rows of tiles"},
            "tiles": {"type": "integer", "description": "also counts one that shows the whole picture once more"},
            "tokens": {"type": "integer"},
            "shrunk": {"type": "boolean"},
        },
    },
)


class Seen:
    def __init__(self, models: Models, handles: PictureHandles, settings: Settings) -> None:
        self._models = models
        self._handles = handles
        self._settings = settings
        self._drawing = asyncio.Semaphore(_MAX_DRAWN)

    async def plan(self, request: Request) -> Response:
        settings = self._settings
        question = await read_object(
            request.scope,
            request.receive,
            partial(validated, PlanQuestion),
            max_body=settings.max_body,
            timeout=settings.read_timeout,
        )
        size = question.width, question.height
        if size[0] * size[1] > settings.max_pixels:
            raise ImageTooLargeError(
                f"a picture of {size[0]}x{size[1]} is over the limit of {settings.max_pixels:,} pixels", "width"
            )
        facts = self._models.asked(question.model).facts
        if facts.family is None:
            message = "how this model sees pictures is not known" if facts.vision else "this model sees no pictures"
            raise HTTPError(404, message, "model", "plan_not_known")
        limit = token_limit(question.max_image_tokens, facts.max_image_tokens)
        plan = plan_picture(facts.family, size, question.detail, limit, "width", "max_image_tokens")
        return JSONResponse(
            {
                "object": "image.plan",
                "model": facts.name,
                "original_size": size,
                "used_size": plan.used,
                "canvas_size": plan.canvas or plan.used,
                "grid": tile_grid(plan),
                "tiles": plan.tiles,
                "tokens": plan.tokens,
                "shrunk": plan.shrunk,
            }
        )

    async def show(self, request: Request) -> Response:
        """Answer with a PNG of the pixels that the model gets; as the file has them, if that is not known."""
        options = validated(SeenQuestion, dict(request.query_params))
        facts = self._models.asked(options.model).facts
        async with self._drawing:
            if await request.is_disconnected():
                raise ClientDisconnect
            drawn = await asyncio.to_thread(self._draw, request.path_params["id"], facts, options)
        return Response(drawn, media_type="image/png", headers={"cache-control": "private, no-cache"})

    def _draw(self, id: str, facts: ModelFacts, question: SeenQuestion) -> bytes:
        data, _ = self._handles.use(id, "id")
        settings, family = self._settings, facts.family
        part = FilePart.model_validate({"type": "file", "image": data})
        limit = token_limit(question.max_image_tokens, facts.max_image_tokens)
        fit = fit_for(family, question.detail, limit, settings.max_pixels)
        try:
            with open_part(part, "id", settings.documents, settings.max_pixels, local=False) as document:
                if question.page > len(document):
                    raise RequestError(f"is {question.page}; the file has {len(document)} pages", "page")
                picture = document.read(question.page, fit)
        except ImageError as error:
            raise type(error)(error.message, "id") from None
        pixels = picture.pixels
        if family is not None:
            plan = plan_picture(family, picture.size, question.detail, limit, "id", "max_image_tokens")
            pixels = seen_pixels(family, plan, pixels)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return file.getvalue()
