"""LLaVA-OneVision: LLaVA-NeXT's grid of tiles, whose embeddings are shrunk if there are many.

If a prompt has several pictures, each is one tile, within bars of the mean colour. The numbers are those of
transformers' LlavaOnevisionImageProcessor (Pillow backend) and of its model's pack_image_features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pocketvlm.files.gguf_header import GGUFHeader
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import EncoderTensors
from pocketvlm.vision.families import llava_next
from pocketvlm.vision.families.llava_next import SHRUNK, LlavaNext, best_grid, fitted
from pocketvlm.vision.family import RGB, MosaicSpan, PicturePlan
from pocketvlm.vision.fixed_size import positive
from pocketvlm.vision.grid import Size
from pocketvlm.vision.letterbox import Letterbox, read_letterbox

DECODERS = ("qwen2",)
_TOLERANCE = 1.1  # along an edge: a grid of embeddings that is no more above the limit is left as it is
_MAX_TILES = 1 << 12  # a square of 64: models have 9


@dataclass(frozen=True)
class LlavaOnevision(LlavaNext):
    """`most` is the number of tiles whose embeddings a picture may have: 9 of "anyres_max_9".

    `fit` makes a picture one tile. With `several`, every picture is one.
    """

    fit: Letterbox = field(kw_only=True)
    most: int = field(kw_only=True)
    several: bool = False

    @property
    def among_others(self) -> LlavaOnevision:
        return replace(self, several=True)

    def plan(self, size: Size, detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        """Return a plan. `auto` cuts no picture into more tiles than those whose embeddings it may have."""
        grids = [] if self.several or detail == "low" or (detail == "auto" and max(size) <= self.tile) else self.grids
        limit = self.most * self.tile**2 if detail == "auto" else math.inf
        grids = [grid for grid in grids if grid[0] * grid[1] <= limit]
        grids = [grid for grid in grids if max_tokens is None or self._tokens(size, grid) <= max_tokens]
        if not grids:
            one = MosaicSpan((self.span(0),), tuple(range(self.tile_tokens)))
            resizes = (max(size), max(size)), (self.tile, self.tile)
            return PicturePlan(size, resizes, (one,), cut=self.fit.view(size))
        grid = best_grid(size, grids)
        whole = MosaicSpan((self.span(0),), tuple(range(self.side**2)))
        bands = self._bands(size, grid) if self._shrunk(size, grid) is None else [self._resampled(size, grid)]
        return PicturePlan(size, (fitted(size, grid),), (whole, *bands), grid)

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """Return tiles, uint8 [tile, tile, 3] each: the whole picture, then the grid row by row."""
        return [np.asarray(self.fit.apply(image))] if plan.canvas is None else super().tiles(image, plan)

    def _tokens(self, size: Size, grid: Size) -> int:
        shrunk = self._shrunk(size, grid)
        return super()._tokens(size, grid) if shrunk is None else self.side**2 + shrunk[1] * (shrunk[0] + 1)

    def _shrunk(self, size: Size, grid: Size) -> Size | None:
        """Return the columns and rows that the embeddings of a grid are shrunk to, None if they are not."""
        across, down = self.unpadded(size, grid)
        ratio = math.sqrt(len(down) * len(across) / (self.most * self.side**2))
        if ratio <= _TOLERANCE:
            return None
        return max(1, int(len(across) // ratio)), max(1, int(len(down) // ratio))

    def _resampled(self, size: Size, grid: Size) -> MosaicSpan:
        """Return the embeddings of a grid, each from the four nearest (bilinear), with the end of each row."""
        shrunk = self._shrunk(size, grid)
        assert shrunk is not None
        (cols, rows), (across, down) = shrunk, self.unpadded(size, grid)
        tiles = grid[0] // self.tile
        order: list[int] = []
        weights: list[tuple[float, ...]] = []
        for y, below, rest_y in _between(len(down), rows):
            for x, right, rest_x in _between(len(across), cols):
                order += (self._place(across[column], down[row], tiles) for row in (y, below) for column in (x, right))
                weights.append(tuple(v * h for v in (1 - rest_y, rest_y) for h in (1 - rest_x, rest_x)))
            order += [self.tile_tokens - 1] * 4
            weights.append((1.0, 0.0, 0.0, 0.0))
        spans = tuple(self.span(1 + index) for index in range(tiles * (grid[1] // self.tile)))
        return MosaicSpan(spans, tuple(order), tuple(weights))

    def _place(self, x: int, y: int, tiles: int) -> int:
        """Return where a cell of the grid is among the rows of all tiles, of which `tiles` are along its width."""
        tile = y // self.side * tiles + x // self.side
        return tile * self.tile_tokens + y % self.side * self.side + x % self.side


def _between(count: int, fewer: int) -> Iterator[tuple[int, int, float]]:
    """Yield the two of `count` values between which each of `fewer` lies, and how far from the first.

    As torch's interpolate with the mode "bilinear", without corners that coincide.
    """
    for index in range(fewer):
        place = max((index + 0.5) * (count / fewer) - 0.5, 0.0)
        first = min(int(place), count - 1)
        yield first, min(first + 1, count - 1), place - first


def matches(metadata: dict[str, Any]) -> bool:
    return llava_next.has_grids(metadata) and SHRUNK in metadata


def from_metadata(metadata: dict[str, Any]) -> LlavaOnevision:
    next_family = llava_next.from_metadata(metadata)
    most = positive(metadata, SHRUNK, most=_MAX_TILES)
    fit = read_letterbox({**metadata, "pocketvlm.image_fit": "pad"}, next_family.tile)
    return LlavaOnevision(next_family.tile, next_family.side, next_family.grids, fit=fit, most=most)


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    return llava_next.tensors(header)
