"""Prepare pictures of a known family: with the family's preprocessing and layout, and any tile encoder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pocketvlm.errors import EngineError, ImageError
from pocketvlm.messages import Detail
from pocketvlm.pictures.clip import Clip
from pocketvlm.pictures.images import Picture
from pocketvlm.system.allocator import return_free_blocks
from pocketvlm.templates.prompt import TextSpan, isolate_control_tokens
from pocketvlm.vision.clip import prepare_clip
from pocketvlm.vision.embedding_cache import EmbeddingCache, content_of
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan, PreparedImage, VisionEncoder
from pocketvlm.vision.family import RGB, Family, MosaicSpan, PicturePlan, TileSpan, family_for, plan_picture
from pocketvlm.vision.positions import span_positions
from pocketvlm.vision.video import video_of


class FamilyVision:
    """A `Vision` for the pictures of `family`. With `mrope`, positions have four sections."""

    def __init__(
        self, family: Family, encoder: VisionEncoder, *, mrope: bool, cache: EmbeddingCache | None = None
    ) -> None:
        self.name = encoder.name
        self.image_token: str | None = family.image_token
        self.min_batch = family.tile_tokens if family.non_causal else 0
        self.concurrent_tiles = encoder.concurrent_tiles
        self.cache = cache or EmbeddingCache()
        self._family = family
        self._encoder = encoder
        self._control_tokens = family.control_tokens()
        self._mrope = mrope
        video = video_of(family)
        self._video = video if video is not None and video.frames <= encoder.frames else None
        self.shows_videos = self._video is not None

    def prepare(
        self, picture: Picture, detail: Detail, max_tokens: int | None, param: str, *, alone: bool = True
    ) -> PreparedImage:
        """Plan a picture. Raises RequestError where the model needs more than `max_tokens`, and ImageError."""
        family = family_for(self._family, alone=alone)
        plan = plan_picture(family, picture.size, detail, max_tokens, param)
        spans = (
            TextSpan(piece, special=True) if isinstance(piece, str) else self._span(piece, picture, plan)
            for piece in plan.layout
        )
        pieces: tuple[TextSpan | EmbeddingSpan, ...] = isolate_control_tokens(spans, self._control_tokens)
        return _TiledImage(
            pieces,
            plan.original,
            plan.used,
            plan.shrunk,
            self._high_size(family, plan, detail, max_tokens),
            plan.view,
            cache=self.cache,
            picture=picture,
            plan=plan,
            family=family,
            encoder=self._encoder,
        )

    def _high_size(
        self, family: Family, plan: PicturePlan, detail: Detail, max_tokens: int | None
    ) -> tuple[int, int] | None:
        """Return the size at detail "high" of a picture that is shrunk to `plan`, None where that is no more."""
        if not plan.shrunk or detail == "high":
            return None
        try:
            high = family.plan(plan.original, "high", max_tokens).used
        except ImageError:
            return None
        return high if high[0] * high[1] > plan.used[0] * plan.used[1] else None

    def prepare_clip(self, clip: Clip, detail: Detail, max_tokens: int | None, param: str) -> PreparedImage:
        """Plan a video. Raises as `prepare` does; the caller has looked whether it `shows_videos`."""
        assert self._video is not None
        return prepare_clip(
            clip,
            self._video,
            self._family,
            self._encoder,
            self.cache,
            detail=detail,
            max_tokens=max_tokens,
            mrope=self._mrope,
            param=param,
        )

    def _span(self, piece: TileSpan | MosaicSpan, picture: Picture, plan: PicturePlan) -> EmbeddingSpan:
        positions, advance = span_positions(piece, mrope=self._mrope)
        causal = not self._family.non_causal
        key = f"{picture.digest}:{plan.resizes}:" + (f"{plan.canvas}:" if plan.canvas else "")
        if isinstance(piece, TileSpan):
            return EmbeddingSpan(
                f"{key}{piece.index}:{self.name}", piece.index, positions, advance, causal, piece.control
            )
        parts = tuple(self._span(tile, picture, plan) for tile in piece.tiles)
        key = f"{key}{[part.index for part in parts]}:{self.name}"
        order, weights = np.array(piece.order), None
        if piece.weights:
            order, weights = order.reshape(piece.tokens, -1), np.array(piece.weights, np.float32)
        return EmbeddingSpan(key, parts[0].index, positions, advance, causal, parts=parts, order=order, weights=weights)

    def cancel(self) -> None:
        self._encoder.cancel()

    def allow(self) -> None:
        self._encoder.allow()

    def close(self) -> None:
        self._encoder.close()


@dataclass(kw_only=True)
class _TiledImage(PreparedImage):
    picture: Picture
    plan: PicturePlan
    family: Family
    encoder: VisionEncoder
    tiles: Sequence[RGB] | None = field(default=None, repr=False)  # cut when first needed
    contents: dict[int, str] = field(default_factory=dict, repr=False)  # by the tile's index

    def content(self, span: EmbeddingSpan) -> str:
        """Return the content key of a tile. If a picture changes in one place, the other tiles stay cached."""
        if span.index not in self.contents:
            tile = self._tile(span)
            began = time.perf_counter()
            self.contents[span.index] = content_of(tile)
            self.preprocess_ms += 1000 * (time.perf_counter() - began)
        return self.contents[span.index]

    def compute(self, span: EmbeddingSpan) -> Embeddings:
        tile = self._tile(span)
        began = time.perf_counter()
        rows = self.encoder.encode_tile(tile)
        self.add_encode_time(began)
        if len(rows) != span.tokens:
            raise EngineError(
                f"the vision encoder returned {len(rows)} embeddings for a tile, but its family has {span.tokens}"
            )
        return rows

    def _tile(self, span: EmbeddingSpan) -> RGB:
        if self.tiles is None:
            began = time.perf_counter()
            self.tiles = self.family.tiles(self.picture.pixels, self.plan)
            return_free_blocks()
            self.preprocess_ms += 1000 * (time.perf_counter() - began)
        return self.tiles[span.index]
