"""LLaVA-NeXT: the whole picture as one tile, then a grid of tiles that the picture fills in proportion.

The tiles' embeddings make one grid. What stands for padding is cut off, and each row ends with an embedding of its own,
which encoders give behind those of every tile. Same numbers as transformers' LlavaNextImageProcessor (Pillow backend)
and its model's pack_image_features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.family import RGB, Detail, MosaicSpan, PicturePlan, RowEnd, TileSpan
from pocketvlm.vision.fixed_size import read_fixed_size
from pocketvlm.vision.grid import Size, cut

_KEY = "clip.vision.image_grid_pinpoints"
_MOST_TILES = 64  # along an edge: several times what models have
_BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class LlavaNext:
    """`tile` is vision_config.image_size in pixels, `side` image_size / patch_size.

    `grids` are the sizes in pixels that a picture may be fitted into, in the order of `image_grid_pinpoints`.
    """

    tile: int
    side: int
    grids: tuple[Size, ...]
    non_causal: bool = False
    image_token: str = "<image>"

    @property
    def tile_tokens(self) -> int:
        return self.side**2 + 1

    @property
    def row_end(self) -> RowEnd:
        """The last of each tile's embeddings, for the layout to put behind rows of the grid; libmtmd leaves it out."""
        return RowEnd(("v.image_newline", "model.image_newline"))

    def control_tokens(self) -> tuple[str, ...]:
        return ()

    def plan(self, size: Size, detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        """`auto` leaves a picture that a tile holds in one tile; a model was trained on that layout as well."""
        grids = [grid for grid in self.grids if max_tokens is None or self._tokens(size, grid) <= max_tokens]
        if detail == "low" or not grids or (detail == "auto" and max(size) <= self.tile):
            whole = MosaicSpan((self._span(0),), tuple(range(self.tile_tokens)))
            return PicturePlan(size, ((self.tile, self.tile),), (whole,))
        grid = _best(size, grids)
        whole = MosaicSpan((self._span(0),), tuple(range(self.side**2)))
        return PicturePlan(size, (_fitted(size, grid),), (whole, *self._bands(size, grid)), grid)

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """uint8 [tile, tile, 3] each: the whole picture, out of proportion, then the grid row by row."""
        picture, edge = Image.fromarray(image), self.tile
        views: list[RGB] = [np.asarray(picture.resize((edge, edge), _BICUBIC))]
        if plan.canvas is not None:
            width, height = plan.canvas
            canvas = Image.new("RGB", plan.canvas)
            left, top = (width - plan.used[0]) // 2, (height - plan.used[1]) // 2
            canvas.paste(picture.resize(plan.used, _BICUBIC), (left, top))
            views += cut(canvas, edge)
        return views

    def _tokens(self, size: Size, grid: Size) -> int:
        across, down = self._seen(size, grid)
        return self.side**2 + len(down) * (len(across) + 1)

    def _seen(self, size: Size, grid: Size) -> tuple[range, range]:
        return _seen(size, (grid[0] // self.tile * self.side, grid[1] // self.tile * self.side))

    def _bands(self, size: Size, grid: Size) -> Iterator[MosaicSpan]:
        """The grid's embeddings, a row of tiles at a time."""
        cols, rows = grid[0] // self.tile, grid[1] // self.tile
        across, down = self._seen(size, grid)
        for row in range(rows):
            order: list[int] = []
            for y in range(row * self.side, (row + 1) * self.side):
                if y in down:
                    order += (
                        x // self.side * self.tile_tokens + y % self.side * self.side + x % self.side for x in across
                    )
                    order.append(self.tile_tokens - 1)
            if order:
                yield MosaicSpan(tuple(self._span(1 + row * cols + col) for col in range(cols)), tuple(order))

    def _span(self, index: int) -> TileSpan:
        return TileSpan(index, (1, self.tile_tokens))


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "mlp" and bool(metadata.get(_KEY))


def from_metadata(metadata: dict[str, Any]) -> LlavaNext:
    """The key holds width and height by turns, as in files of llama.cpp's own converter."""
    tile, side = read_fixed_size(metadata, 1)
    told = metadata[_KEY]
    if not isinstance(told, list | tuple) or len(told) % 2 or not all(type(edge) is int for edge in told):
        raise ValueError(f"{_KEY} is {told!r}, must be pairs of numbers")
    if any(edge % tile or not 0 < edge <= _MOST_TILES * tile for edge in told):
        raise ValueError(f"{_KEY} is {told!r}, must be multiples of {tile}, {_MOST_TILES} times as much at most")
    return LlavaNext(tile, side, tuple((width, height) for width, height in zip(told[::2], told[1::2], strict=True)))


def _best(size: Size, grids: list[Size]) -> Size:
    """The grid that shows most of the picture's pixels; of those, the one with least padding."""

    def worth(grid: Size) -> tuple[int, int]:
        scale = min(grid[0] / size[0], grid[1] / size[1])
        shown = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return shown, shown - grid[0] * grid[1]

    return max(grids, key=worth)


def _fitted(size: Size, grid: Size) -> Size:
    """The picture's size within a grid, one edge of which it fills."""
    across, down = grid[0] / size[0], grid[1] / size[1]
    if across < down:
        return grid[0], min(math.ceil(size[1] * across), grid[1])
    return min(math.ceil(size[0] * down), grid[0]), grid[1]


def _seen(size: Size, places: Size) -> tuple[range, range]:
    """Columns and rows, of so many `places`, that a picture of this size takes in their middle."""
    cols, rows = places
    if size[0] / size[1] > cols / rows:
        cut = (rows - int(round(size[1] * (cols / size[0]), 7))) // 2
        return range(cols), range(cut, rows - cut)
    cut = (cols - int(round(size[0] * (rows / size[1]), 7))) // 2
    return range(cut, cols - cut), range(rows)
