"""Pictures at about their own size: one tile, its edges multiples of what one embedding sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pocketvlm.errors import ImageError
from pocketvlm.vision.family import RGB, Detail, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import positive
from pocketvlm.vision.grid import resized, within

_MERGE = 2
# Far above what models have: a small picture is enlarged to at least so many pixels.
_LARGEST, _LARGEST_LEAST = 64, 1 << 26
_AUTO, _LOW = 1024, 256  # embeddings
_LONGEST = 200  # times the short edge: more is refused, as the reference does


@dataclass(frozen=True)
class DynamicSize:
    """`factor` is patch_size * merge_size, in pixels; a picture has `least` to `most` pixels, as trained.

    With `edges_first`, a picture is enlarged until no edge is below `factor`, before anything else is looked at.

    `around` are the control tokens that the chat template itself writes around `image_token`. The reference are the
    image processors of transformers that have a `smart_resize` (Pillow backend).

    Attention costs the square of the patches (4 an embedding). So `auto` stops at 1024 embeddings: about 0.8 megapixels
    with a factor of 28.
    """

    factor: int
    least: int
    most: int
    image_token: str
    around: tuple[str, ...]
    edges_first: bool = False
    non_causal: bool = False

    def __post_init__(self) -> None:
        if self.factor < 1 or not 1 <= self.least <= self.most:
            raise ValueError(f"pictures of {self.least} to {self.most} pixels in steps of {self.factor}")

    @property
    def tile_tokens(self) -> int:
        """A bound; only tiny pictures of extreme shape come near it where `least` and `most` are close."""
        edges = math.sqrt(self.least) * (math.sqrt(_LONGEST) + 1) / self.factor
        return max(self.most // self.factor**2, math.ceil(self.least / self.factor**2 + edges + 1), _LONGEST + 1)

    def control_tokens(self) -> tuple[str, ...]:
        return self.around

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        area, most = self.factor**2, self.most
        if detail == "auto":
            most = min(most, max(_AUTO * area, self.least))
        used = smart_resize(size, self.factor, self.least, most, edges_first=self.edges_first)
        limits = [limit for limit in (max_tokens, _LOW if detail == "low" else None) if limit is not None]
        if limits and used[0] * used[1] > min(limits) * area:
            cols, rows = within(size, min(limits))
            used = (cols * self.factor, rows * self.factor)
        span = TileSpan(0, (used[1] // self.factor, used[0] // self.factor))
        return PicturePlan(original=size, resizes=(used,), layout=(span,))

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """One uint8 [height, width, 3]."""
        return [np.asarray(resized(Image.fromarray(image), plan.used, Image.Resampling.BICUBIC))]


def read_dynamic(
    metadata: Mapping[str, object], *, least: int, most: int, image_token: str, around: tuple[str, ...]
) -> DynamicSize:
    """From the keys of an encoder's file; in those of llama.cpp's own converter, `least` and `most` stand for theirs.

    Raises KeyError for a key that is missing, ValueError for a value that no encoder has.
    """
    merge = positive(metadata, "clip.vision.spatial_merge_size", _MERGE, most=_LARGEST)
    return DynamicSize(
        factor=positive(metadata, "clip.vision.patch_size", most=_LARGEST) * merge,
        least=positive(metadata, "clip.vision.image_min_pixels", least, most=_LARGEST_LEAST),
        most=positive(metadata, "clip.vision.image_max_pixels", most, most=2**31 - 1),
        image_token=image_token,
        around=around,
    )


def smart_resize(
    size: tuple[int, int], factor: int, least: int, most: int, *, edges_first: bool = False
) -> tuple[int, int]:
    """(width, height) -> the nearest multiples of `factor` with `least` to `most` pixels, in about its proportions.

    The same numbers as transformers' functions of this name, of which some look at edges first. Raises ImageError for a
    picture more than 200 times as long as wide.
    """
    if edges_first and min(size) < factor:
        scale = factor / min(size)
        size = int(size[0] * scale), int(size[1] * scale)
    if max(size) > _LONGEST * min(size):
        raise ImageError(f"a picture of {size[0]}x{size[1]} is more than {_LONGEST} times as long as wide")
    area = size[0] * size[1]
    width, height = (round(edge / factor) * factor for edge in size)
    if width * height > most:
        shrink = math.sqrt(area / most)
        width, height = (max(factor, math.floor(edge / shrink / factor) * factor) for edge in size)
    elif width * height < least:
        grow = math.sqrt(least / area)
        width, height = (math.ceil(edge * grow / factor) * factor for edge in size)
    return width, height
