"""Prepare videos of a known family: one or more frames are a tile, in the layout and with the positions of its plan."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from pocketvlm.errors import EngineError, ImageError, RequestError
from pocketvlm.messages import Detail
from pocketvlm.pictures.clip import Clip
from pocketvlm.templates.prompt import TextSpan, isolate_control_tokens
from pocketvlm.vision.embedding_cache import EmbeddingCache, content_of
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan, PreparedImage, VisionEncoder
from pocketvlm.vision.family import RGB, Family, TileSpan
from pocketvlm.vision.positions import span_positions, tile_positions
from pocketvlm.vision.video import Frames, Video, VideoPlan

_KEPT = 4  # tiles between hashing and encoding: two threads may encode


def prepare_clip(
    clip: Clip,
    video: Video,
    family: Family,
    encoder: VisionEncoder,
    cache: EmbeddingCache,
    *,
    detail: Detail,
    max_tokens: int | None,
    mrope: bool,
    param: str,
) -> PreparedImage:
    """Plan a video. Raises RequestError where a tile needs more than `max_tokens`, and ImageError."""
    size = clip.pictures[0].size
    try:
        plan = video.plan(Frames(size, clip.times, clip.seconds), detail, max_tokens)
    except ImageError as error:
        raise type(error)(error.message, param) from None
    if max_tokens is not None and plan.tile_tokens > max_tokens:
        raise RequestError(
            f"max_image_tokens is {max_tokens}; this model needs {plan.tile_tokens} for frames of a video", param
        )

    def span(tile: TileSpan) -> EmbeddingSpan:
        positions, advance = tile_positions(plan, tile) if plan.steps else span_positions(tile, mrope=mrope)
        frames = [clip.pictures[number].digest for number in plan.frames_of(tile.index, len(clip.pictures))]
        # What follows is found by this key, too, so the key says where it begins.
        named = f"{frames}:{plan.resizes}:{plan.steps[tile.index : tile.index + 2]}:{encoder.name}"
        key = hashlib.sha256(named.encode()).hexdigest()
        return EmbeddingSpan(key, tile.index, positions, advance, not family.non_causal)

    # A line break may be part of a longer token, so it is not a control token in a sentence.
    control = [token for token in family.control_tokens() if token.strip()]
    pieces = (TextSpan(piece, special=True) if isinstance(piece, str) else span(piece) for piece in plan.layout)
    return _ClipImage(
        isolate_control_tokens(pieces, control),
        size,
        plan.used,
        plan.shrunk,
        cache=cache,
        clip=clip,
        plan=plan,
        video=video,
        encoder=encoder,
    )


@dataclass(kw_only=True)
class _ClipImage(PreparedImage):
    clip: Clip
    plan: VideoPlan
    video: Video
    encoder: VisionEncoder
    recent: OrderedDict[int, RGB] = field(default_factory=OrderedDict, repr=False)  # tiles by their index
    contents: dict[int, str] = field(default_factory=dict, repr=False)
    _cutting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def content(self, span: EmbeddingSpan) -> str:
        """Return the content key of a tile. Frames that do not change have the same one."""
        if span.index not in self.contents:
            self.contents[span.index] = content_of(self._tile(span.index))
        return self.contents[span.index]

    def compute(self, span: EmbeddingSpan) -> Embeddings:
        tile = self._tile(span.index)
        began = time.perf_counter()
        rows = self.encoder.encode_tile(tile)
        self.add_encode_time(began)
        if len(rows) != span.tokens:
            raise EngineError(
                f"the vision encoder returned {len(rows)} embeddings for a tile, but its family has {span.tokens}"
            )
        return rows

    def _tile(self, index: int) -> RGB:
        with self._cutting:
            if index not in self.recent:
                began = time.perf_counter()
                numbers = dict.fromkeys(self.plan.frames_of(index, len(self.clip.pictures)))
                frames = [self.video.frame(self.clip.pictures[number].pixels, self.plan) for number in numbers]
                still = all(np.array_equal(frame, frames[0]) for frame in frames[1:])  # the encoder repeats a picture
                self.recent[index] = frames[0] if still else np.concatenate(frames, axis=-1)
                self.preprocess_ms += 1000 * (time.perf_counter() - began)
            while len(self.recent) > _KEPT:
                self.recent.popitem(last=False)
            return self.recent[index]
