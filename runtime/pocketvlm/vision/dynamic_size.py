"""Encode a picture at about its own size: as one tile whose edges are multiples of what one embedding covers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pocketvlm.messages import Detail
from pocketvlm.vision.family import RGB, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import positive
from pocketvlm.vision.grid import MAX_RATIO, check_ratio, resized, within
from pocketvlm.vision.video import Video

_MERGE = 2  # patches along the edge of an embedding, where a file is silent
_MAX_PATCH = 64  # pixels, and patches that are merged: far above what models have
_MAX_MIN_PIXELS = 1 << 26  # far above what models have: every small picture is enlarged to the minimum
_AUTO_TOKENS, _LOW_TOKENS = 1024, 256  # embeddings


@dataclass(frozen=True)
class DynamicSize:
    """`factor` is patch_size * merge_size in pixels. A resized picture has `min_pixels` to `max_pixels`.

    With `edges_first`, a picture is first enlarged until no edge is shorter than `factor`.

    `around` are the control tokens that the chat template itself writes around `image_token`. The reference is
    `smart_resize` of transformers' image processors (Pillow backend).

    The cost of attention grows with the square of the patches (4 an embedding), so `auto` stops at 1024 embeddings:
    about 0.8 megapixels with a factor of 28.
    """

    factor: int
    min_pixels: int
    max_pixels: int
    image_token: str
    around: tuple[str, ...]
    edges_first: bool = False
    non_causal: bool = False
    video: Video | None = None

    def __post_init__(self) -> None:
        if self.factor < 1 or not 1 <= self.min_pixels <= self.max_pixels:
            raise ValueError(f"pictures of {self.min_pixels} to {self.max_pixels} pixels in steps of {self.factor}")

    @property
    def tile_tokens(self) -> int:
        """An upper bound. Only tiny pictures of extreme shape come near it, where the limits are close together."""
        edges = math.sqrt(self.min_pixels) * (math.sqrt(MAX_RATIO) + 1) / self.factor
        smallest = math.ceil(self.min_pixels / self.factor**2 + edges + 1)
        return max(self.max_pixels // self.factor**2, smallest, MAX_RATIO + 1)

    def control_tokens(self) -> tuple[str, ...]:
        return self.around

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        area, max_pixels = self.factor**2, self.max_pixels
        if detail == "auto":
            max_pixels = min(max_pixels, max(_AUTO_TOKENS * area, self.min_pixels))
        used = smart_resize(size, self.factor, self.min_pixels, max_pixels, edges_first=self.edges_first)
        limits = [limit for limit in (max_tokens, _LOW_TOKENS if detail == "low" else None) if limit is not None]
        if limits and used[0] * used[1] > min(limits) * area:
            cols, rows = within(size, min(limits))
            used = (cols * self.factor, rows * self.factor)
        span = TileSpan(0, (used[1] // self.factor, used[0] // self.factor))
        return PicturePlan(original=size, resizes=(used,), layout=(span,))

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """Return the resized picture, uint8 [height, width, 3]."""
        return [np.asarray(resized(Image.fromarray(image), plan.used, Image.Resampling.BICUBIC))]


def read_dynamic(
    metadata: Mapping[str, object], *, min_pixels: int, max_pixels: int, image_token: str, around: tuple[str, ...]
) -> DynamicSize:
    """Read the sizes from an encoder's metadata. `min_pixels` and `max_pixels` are for files without these keys.

    llama.cpp's own converter does not write them. Raises KeyError for a key that is missing, ValueError for a value
    that no encoder has.
    """
    merge = positive(metadata, "clip.vision.spatial_merge_size", _MERGE, most=_MAX_PATCH)
    return DynamicSize(
        factor=positive(metadata, "clip.vision.patch_size", most=_MAX_PATCH) * merge,
        min_pixels=positive(metadata, "clip.vision.image_min_pixels", min_pixels, most=_MAX_MIN_PIXELS),
        max_pixels=positive(metadata, "clip.vision.image_max_pixels", max_pixels, most=2**31 - 1),
        image_token=image_token,
        around=around,
    )


def smart_resize(
    size: tuple[int, int],
    factor: int,
    min_pixels: int,
    max_pixels: int,
    *,
    edges_first: bool = False,
    frames: int = 1,
) -> tuple[int, int]:
    """Return the nearest (width, height) in multiples of `factor` within the limits, in about the same proportions.

    The limits are those of `frames` frames together. Like the reference, it compares an even number of frames with
    them, and scales by the number itself.

    The numbers are those of transformers' functions of this name, of which some adapt the edges first. Raises
    ImageError for a picture more than 200 times as long as wide.
    """
    check_ratio(size)
    if edges_first and min(size) < factor:
        scale = factor / min(size)
        size = int(size[0] * scale), int(size[1] * scale)
    area = size[0] * size[1] * frames
    compared = round(frames / 2) * 2 if frames > 1 else 1
    width, height = (round(edge / factor) * factor for edge in size)
    if width * height * compared > max_pixels:
        shrink = math.sqrt(area / max_pixels)
        width, height = (max(factor, math.floor(edge / shrink / factor) * factor) for edge in size)
    elif width * height * compared < min_pixels:
        grow = math.sqrt(min_pixels / area)
        width, height = (math.ceil(edge * grow / factor) * factor for edge in size)
    return width, height
