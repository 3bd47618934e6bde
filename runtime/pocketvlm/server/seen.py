"""How a model sees pictures: POST /images/plan by their size alone, GET /images/{id}/seen with their pixels."""

from __future__ import annotations

import asyncio
import io
from functools import partial
from typing import Annotated

from PIL import Image
from pydantic import Field, Strict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pocketvlm.engine.interface import CancellationToken
from pocketvlm.errors import ImageError, ImageTooLargeError, RequestError
from pocketvlm.messages import Detail, ImageURLPart
from pocketvlm.messages.base import Frozen
from pocketvlm.messages.field_errors import validated
from pocketvlm.messages.numbers import AnyNumber, Limit
from pocketvlm.pictures.handles import PictureHandles
from pocketvlm.pictures.known_files import KnownFiles
from pocketvlm.server.body import read_object
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.model_facts import ModelFacts
from pocketvlm.server.models import Models
from pocketvlm.server.operation import Component
from pocketvlm.server.pictures import Pictures
from pocketvlm.server.settings import Settings
from pocketvlm.vision.family import Family, PicturePlan
from pocketvlm.vision.seen import seen_pixels, tile_grid

_MAX_DRAWN = 2  # pictures at a time: each is decoded, resized and encoded
_Edge = Annotated[int, Strict(), Field(ge=1, le=1_000_000), AnyNumber()]


class PictureOptions(Frozen):
    """How a message would show a picture to a model."""

    model: str | None = None
    detail: Detail = "auto"
    max_image_tokens: Limit = None


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
        _, plan = _planned(facts, size, question)
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
        """Answer with a PNG of the pixels that the model gets."""
        options = validated(PictureOptions, dict(request.query_params))
        facts = self._models.asked(options.model).facts
        async with self._drawing:
            drawn = await asyncio.to_thread(self._draw, request.path_params["id"], facts, options)
        return Response(drawn, media_type="image/png", headers={"cache-control": "private, no-cache"})

    def _draw(self, id: str, facts: ModelFacts, options: PictureOptions) -> bytes:
        self._handles.find(id, "id")
        pictures = Pictures(self._settings, self._handles, KnownFiles(), CancellationToken())
        part = ImageURLPart.model_validate({"type": "image_url", "image_url": id})
        picture = pictures.read(part, "id")
        family, plan = _planned(facts, picture.size, options)
        file = io.BytesIO()
        Image.fromarray(seen_pixels(family, plan, picture.pixels)).save(file, "PNG", compress_level=1)
        return file.getvalue()


def _planned(facts: ModelFacts, size: tuple[int, int], options: PictureOptions) -> tuple[Family, PicturePlan]:
    if facts.family is None:
        message = "how this model sees pictures is not known before it answers" if facts.vision else "it sees none"
        raise HTTPError(404, f"{facts.name}: {message}", "model", "plan_not_known")
    limits = [limit for limit in (options.max_image_tokens, facts.max_image_tokens) if limit is not None]
    limit = min(limits, default=None)
    try:
        plan = facts.family.plan(size, options.detail, limit)
    except ImageError as error:
        raise ImageError(error.message, "width") from None
    if limit is not None and plan.tokens > limit:
        raise RequestError(f"is {limit}; this model needs {plan.tokens} for a picture", "max_image_tokens")
    return facts.family, plan
