"""LFM2-VL and LFM2.5-VL: one tile of about the picture's own size, or square tiles in a grid and an overview.

Same numbers as transformers' Lfm2VlImageProcessor and prompt layout as its processor; Pillow resizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.errors import ImageError
from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.family import RGB, Detail, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import positive
from pocketvlm.vision.grid import cut, grids, nearest, resized, within

_BILINEAR = Image.Resampling.BILINEAR
_BEGIN, _END, _OVERVIEW = "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"
_TOLERANCE = 2  # times max_image_tokens: a larger picture is cut into tiles
_LARGEST, _MOST_TILES, _MOST_TOKENS = 4096, 10, 1 << 14


@dataclass(frozen=True)
class LFM2VL:
    """Of the image processor's settings: `tile` is tile_size, `patch` encoder_patch_size, `factor` downsample_factor.

    `tiles_from` to `tiles_to` are min_tiles and max_tiles, both 1 where nothing is cut; `least` and `most` are
    min_image_tokens and max_image_tokens; `overview` is use_thumbnail.
    """

    tile: int
    patch: int
    factor: int
    tiles_from: int
    tiles_to: int
    least: int
    most: int
    overview: bool = True
    non_causal: bool = False
    image_token: str = "<image>"

    def __post_init__(self) -> None:
        if self.tile % self.cell or self.tiles_from > self.tiles_to or self.least > self.most:
            raise ValueError(
                f"tiles of {self.tile} pixels in steps of {self.cell}, {self.tiles_from} to {self.tiles_to} of them; "
                f"{self.least} to {self.most} tokens"
            )

    @property
    def cell(self) -> int:
        """Pixels along an edge of what one embedding sees."""
        return self.patch * self.factor

    @property
    def tile_tokens(self) -> int:
        """What the reference's arrays hold, too."""
        return max(self.most, (self.tile // self.cell) ** 2 if self.tiles_to > 1 else 0)

    def control_tokens(self) -> tuple[str, ...]:
        if self.tiles_to == 1:
            return (_BEGIN, _END)
        places = sorted({(r, c) for cols, rows in self._grids() for r in range(rows) for c in range(cols)})
        return (_BEGIN, _END, *([_OVERVIEW] if self.overview else []), *(_name(*place) for place in places))

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        """Raises ImageError for a picture so long that the reference's encoder does not hold it."""
        single = self._single(size)
        if self.tiles_to > 1 and detail != "low" and self._is_large(size):
            spent = self._tokens(single) if self.overview else 0
            room = None if max_tokens is None else (max_tokens - spent) // (self.tile // self.cell) ** 2
            if grid := self._grid(size, detail, room):
                # Both sizes, because both are in what the encoder gets.
                resizes = (single, (grid[0] * self.tile, grid[1] * self.tile))
                return PicturePlan(original=size, resizes=resizes, layout=self._layout(grid, single))
        if max_tokens is not None and self._tokens(single) > max_tokens:
            cols, rows = within(size, max_tokens)
            single = (cols * self.cell, rows * self.cell)
        return PicturePlan(original=size, resizes=(single,), layout=(_BEGIN, self._span(0, single), _END))

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """The grid row by row, uint8 [tile, tile, 3] each, then the whole picture; or that alone."""
        picture = Image.fromarray(image)
        if len(plan.resizes) == 1:
            return [np.asarray(resized(picture, plan.used, _BILINEAR))]
        crops = cut(resized(picture, plan.used, _BILINEAR), self.tile)
        if self.overview:
            crops.append(np.asarray(resized(picture, plan.resizes[0], _BILINEAR)))
        return crops

    def _single(self, size: tuple[int, int]) -> tuple[int, int]:
        """The nearest multiples of a cell with `least` to `most` of them, in about the picture's proportions."""
        cell, area = self.cell, self.cell**2
        width, height = (max(cell, round(edge / cell) * cell) for edge in size)
        if width * height > self.most * area:
            shrink = math.sqrt(size[0] * size[1] / (self.most * area))
            width, height = (max(cell, math.floor(edge / shrink / cell) * cell) for edge in size)
        elif width * height < self.least * area:
            grow = math.sqrt(self.least * area / (size[0] * size[1]))
            width, height = (math.ceil(edge * grow / cell) * cell for edge in size)
        if width * height > self.tile_tokens * area:
            raise ImageError(f"a picture of {size[0]}x{size[1]} is too long for its width: this model cannot see it")
        return width, height

    def _is_large(self, size: tuple[int, int]) -> bool:
        width, height = (max(self.patch, round(edge / self.cell) * self.cell) for edge in size)
        return width * height > self.most * self.cell**2 * _TOLERANCE

    def _grids(self) -> list[tuple[int, int]]:
        return grids(self.tiles_from, self.tiles_to)

    def _grid(self, size: tuple[int, int], detail: Detail, room: int | None) -> tuple[int, int] | None:
        """Nearest in proportions to the picture, of those with at most `room` tiles; None where there is none.

        With `auto`, every row and column of the grid begins inside the picture at its own size.
        """
        fitting = [grid for grid in self._grids() if room is None or grid[0] * grid[1] <= room]
        if detail == "auto":
            inside = [
                grid for grid in fitting if all((n - 1) * self.tile < edge for n, edge in zip(grid, size, strict=True))
            ]
            fitting = inside or fitting[:1]
        return nearest(size, self.tile, fitting)

    def _tokens(self, size: tuple[int, int]) -> int:
        return size[0] * size[1] // self.cell**2

    def _span(self, index: int, size: tuple[int, int]) -> TileSpan:
        return TileSpan(index, (size[1] // self.cell, size[0] // self.cell))

    def _layout(self, grid: tuple[int, int], overview: tuple[int, int]) -> tuple[str | TileSpan, ...]:
        cols, rows = grid
        layout: list[str | TileSpan] = [_BEGIN]
        for number in range(cols * rows):
            layout += [_name(*divmod(number, cols)), self._span(number, (self.tile, self.tile))]
        if self.overview:
            layout += [_OVERVIEW, self._span(cols * rows, overview)]
        return (*layout, _END)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "lfm2"


def from_metadata(metadata: dict[str, Any]) -> LFM2VL:
    """Files of llama.cpp's own converter say nothing of tiles; what it takes them to be is then the default."""
    patch = positive(metadata, "clip.vision.patch_size", most=_LARGEST)
    factor = positive(metadata, "clip.vision.projector.scale_factor", 2, most=_LARGEST)
    area, tile = (patch * factor) ** 2, "clip.vision.preproc_image_size"
    return LFM2VL(
        tile=positive(metadata, tile, 512, most=_LARGEST),
        patch=patch,
        factor=factor,
        tiles_from=positive(metadata, "clip.vision.preproc_min_tiles", 2, most=_MOST_TILES),
        tiles_to=positive(metadata, "clip.vision.preproc_max_tiles", 10, most=_MOST_TILES),
        least=positive(metadata, "clip.vision.image_min_pixels", 64 * area, most=_MOST_TOKENS * area) // area,
        most=positive(metadata, "clip.vision.image_max_pixels", 256 * area, most=_MOST_TOKENS * area) // area,
        overview=bool(metadata.get("pocketvlm.overview", True)),
    )


def _name(row: int, col: int) -> str:
    return f"<|img_row_{row + 1}_col_{col + 1}|>"
