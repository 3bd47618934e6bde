"""LFM2-VL and LFM2.5-VL: one tile of about the picture's own size, or square tiles in a grid and an overview.

The numbers are those of transformers' Lfm2VlImageProcessor, but Pillow resizes. The prompt layout is that of its
processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.errors import ImageError
from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import (
    SCALE,
    EncoderTensors,
    linear,
    norm,
    read_sizes,
    rows,
    separate,
    square_table,
)
from pocketvlm.vision.family import RGB, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import positive
from pocketvlm.vision.grid import cut, grids, nearest, resized, within

_BILINEAR = Image.Resampling.BILINEAR
_BEGIN, _END, _OVERVIEW = "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"
_TOLERANCE = 2  # times max_image_tokens: a larger picture is cut into tiles
_MAX_EDGE, _TILE_LIMIT, _TOKEN_LIMIT = 4096, 10, 1 << 14  # pixels, tiles, embeddings


@dataclass(frozen=True)
class LFM2VL:
    """Settings of the image processor: `tile` is tile_size, `patch` encoder_patch_size, `factor` downsample_factor.

    `min_tiles` and `max_tiles` are both 1 where pictures are not cut. `min_tokens` and `max_tokens` are
    min_image_tokens and max_image_tokens. `overview` is use_thumbnail.
    """

    tile: int
    patch: int
    factor: int
    min_tiles: int
    max_tiles: int
    min_tokens: int
    max_tokens: int
    overview: bool = True
    non_causal: bool = False
    image_token: str = "<image>"

    def __post_init__(self) -> None:
        if self.tile % self.cell or self.min_tiles > self.max_tiles or self.min_tokens > self.max_tokens:
            raise ValueError(
                f"tiles of {self.tile} pixels in steps of {self.cell}, {self.min_tiles} to {self.max_tiles} of them; "
                f"{self.min_tokens} to {self.max_tokens} tokens"
            )

    @property
    def cell(self) -> int:
        """Pixels along an edge of the area that one embedding covers."""
        return self.patch * self.factor

    @property
    def tile_tokens(self) -> int:
        """The embeddings of the largest tile, which is also the size of the reference's arrays."""
        return max(self.max_tokens, (self.tile // self.cell) ** 2 if self.max_tiles > 1 else 0)

    def control_tokens(self) -> tuple[str, ...]:
        if self.max_tiles == 1:
            return (_BEGIN, _END)
        places = sorted({(r, c) for cols, rows in self._grids() for r in range(rows) for c in range(cols)})
        return (_BEGIN, _END, *([_OVERVIEW] if self.overview else []), *(_place_token(*place) for place in places))

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        """Return a plan. Raises ImageError for a picture that is too long for the reference's encoder."""
        single = self._single(size)
        if self.max_tiles > 1 and detail != "low" and self._is_large(size):
            overview = self._tokens(single) if self.overview else 0
            max_tiles = None if max_tokens is None else (max_tokens - overview) // (self.tile // self.cell) ** 2
            if grid := self._grid(size, detail, max_tiles):
                # `resizes` names what the encoder gets, which depends on both sizes.
                resizes = (single, (grid[0] * self.tile, grid[1] * self.tile))
                return PicturePlan(original=size, resizes=resizes, layout=self._layout(grid, single))
        if max_tokens is not None and self._tokens(single) > max_tokens:
            cols, rows = within(size, max_tokens)
            single = (cols * self.cell, rows * self.cell)
        return PicturePlan(original=size, resizes=(single,), layout=(_BEGIN, self._span(0, single), _END))

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """Return the grid row by row, uint8 [tile, tile, 3] each, then the whole picture; or only the latter."""
        picture = Image.fromarray(image)
        if len(plan.resizes) == 1:
            return [np.asarray(resized(picture, plan.used, _BILINEAR))]
        crops = cut(resized(picture, plan.used, _BILINEAR), self.tile)
        if self.overview:
            crops.append(np.asarray(resized(picture, plan.resizes[0], _BILINEAR)))
        return crops

    def _single(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the nearest size in multiples of a cell within the limits, in about the picture's proportions."""
        cell, area = self.cell, self.cell**2
        width, height = (max(cell, round(edge / cell) * cell) for edge in size)
        if width * height > self.max_tokens * area:
            shrink = math.sqrt(size[0] * size[1] / (self.max_tokens * area))
            width, height = (max(cell, math.floor(edge / shrink / cell) * cell) for edge in size)
        elif width * height < self.min_tokens * area:
            grow = math.sqrt(self.min_tokens * area / (size[0] * size[1]))
            width, height = (math.ceil(edge * grow / cell) * cell for edge in size)
        if width * height > self.tile_tokens * area:
            raise ImageError(
                f"a picture of {size[0]}x{size[1]} is too long for its width, so this model cannot see it; cut it into "
                "pieces"
            )
        return width, height

    def _is_large(self, size: tuple[int, int]) -> bool:
        width, height = (max(self.patch, round(edge / self.cell) * self.cell) for edge in size)
        return width * height > self.max_tokens * self.cell**2 * _TOLERANCE

    def _grids(self) -> list[tuple[int, int]]:
        return grids(self.min_tiles, self.max_tiles)

    def _grid(self, size: tuple[int, int], detail: Detail, max_tiles: int | None) -> tuple[int, int] | None:
        """Return the grid of at most `max_tiles` that is nearest in proportions, None where there is no such grid.

        With `auto`, every row and column of the grid begins inside the picture at its own size.
        """
        candidates = [grid for grid in self._grids() if max_tiles is None or grid[0] * grid[1] <= max_tiles]
        if detail == "auto":
            inside = [
                grid
                for grid in candidates
                if all((n - 1) * self.tile < edge for n, edge in zip(grid, size, strict=True))
            ]
            candidates = inside or candidates[:1]
        return nearest(size, self.tile, candidates)

    def _tokens(self, size: tuple[int, int]) -> int:
        return size[0] * size[1] // self.cell**2

    def _span(self, index: int, size: tuple[int, int]) -> TileSpan:
        return TileSpan(index, (size[1] // self.cell, size[0] // self.cell))

    def _layout(self, grid: tuple[int, int], overview: tuple[int, int]) -> tuple[str | TileSpan, ...]:
        cols, rows = grid
        layout: list[str | TileSpan] = [_BEGIN]
        for number in range(cols * rows):
            layout += [_place_token(*divmod(number, cols)), self._span(number, (self.tile, self.tile))]
        if self.overview:
            layout += [_OVERVIEW, self._span(cols * rows, overview)]
        return (*layout, _END)


DECODERS = ("lfm2",)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "lfm2"


def from_metadata(metadata: dict[str, Any]) -> LFM2VL:
    """Read an mmproj. The defaults are libmtmd's: files of llama.cpp's own converter have no tiles."""
    patch = positive(metadata, "clip.vision.patch_size", most=_MAX_EDGE)
    factor = positive(metadata, "clip.vision.projector.scale_factor", most=_MAX_EDGE)
    area, tile = (patch * factor) ** 2, "clip.vision.preproc_image_size"
    return LFM2VL(
        tile=positive(metadata, tile, 512, most=_MAX_EDGE),
        patch=patch,
        factor=factor,
        min_tiles=positive(metadata, "clip.vision.preproc_min_tiles", 2, most=_TILE_LIMIT),
        max_tiles=positive(metadata, "clip.vision.preproc_max_tiles", 10, most=_TILE_LIMIT),
        min_tokens=positive(metadata, "clip.vision.image_min_pixels", 64 * area, most=_TOKEN_LIMIT * area) // area,
        max_tokens=positive(metadata, "clip.vision.image_max_pixels", 256 * area, most=_TOKEN_LIMIT * area) // area,
        overview=bool(metadata.get("pocketvlm.overview", True)),
    )


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = read_sizes(header, SCALE, least=2)
    inner = rows(header, "mm.1.weight")
    return EncoderTensors(
        sizes,
        required={
            **square_table(header, sizes),
            **linear("mm.1", sizes.merged, inner),
            **linear("mm.2", inner, sizes.output),
        },
        optional={"v.patch_embd.bias": (sizes.hidden,), **norm("mm.input_norm", sizes.merged)},
        layer=separate(sizes),
    )


def _place_token(row: int, col: int) -> str:
    return f"<|img_row_{row + 1}_col_{col + 1}|>"
