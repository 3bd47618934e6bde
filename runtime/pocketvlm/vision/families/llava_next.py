"""LLaVA-NeXT: the whole picture as one tile, then a grid of tiles that the picture fills in proportion.

The tiles' embeddings form one grid. Rows and columns of padding are cut off, and each row ends with a special
embedding, which encoders return after those of every tile. The numbers are those of transformers'
LlavaNextImageProcessor (Pillow backend) and of its model's pack_image_features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.errors import quoted
from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import CLASS_TOKEN, EncoderTensors, linear, read_sizes, rows, separate, table
from pocketvlm.vision.family import RGB, MosaicSpan, PicturePlan, RowEnd, TileSpan
from pocketvlm.vision.fixed_size import read_fixed_size
from pocketvlm.vision.grid import Size, cut

_KEY = "clip.vision.image_grid_pinpoints"
SHRUNK = "pocketvlm.anyres_max"  # of projectors whose grids of embeddings are shrunk, which are another family's
_MAX_TILES = 64  # along an edge: several times what models have
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
        """The last embedding of each tile, which the layout puts after rows of the grid; libmtmd leaves it out."""
        return RowEnd(("v.image_newline", "model.image_newline"))

    def control_tokens(self) -> tuple[str, ...]:
        return ()

    def plan(self, size: Size, detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        """Return a plan. `auto` uses one tile for a picture that fits into it: models were trained on that, too."""
        grids = [grid for grid in self.grids if max_tokens is None or self._tokens(size, grid) <= max_tokens]
        if detail == "low" or not grids or (detail == "auto" and max(size) <= self.tile):
            whole = MosaicSpan((self.span(0),), tuple(range(self.tile_tokens)))
            return PicturePlan(size, ((self.tile, self.tile),), (whole,))
        grid = best_grid(size, grids)
        whole = MosaicSpan((self.span(0),), tuple(range(self.side**2)))
        return PicturePlan(size, (fitted(size, grid),), (whole, *self._bands(size, grid)), grid)

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """Return tiles, uint8 [tile, tile, 3] each: the whole picture, stretched, then the grid row by row."""
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
        across, down = self.unpadded(size, grid)
        return self.side**2 + len(down) * (len(across) + 1)

    def unpadded(self, size: Size, grid: Size) -> tuple[range, range]:
        """Return the columns and rows of the grid's embeddings that a picture covers."""
        return _unpadded(size, (grid[0] // self.tile * self.side, grid[1] // self.tile * self.side))

    def _bands(self, size: Size, grid: Size) -> Iterator[MosaicSpan]:
        """Yield the grid's embeddings, one mosaic for each row of tiles."""
        cols, rows = grid[0] // self.tile, grid[1] // self.tile
        across, down = self.unpadded(size, grid)
        for row in range(rows):
            order: list[int] = []
            for y in range(row * self.side, (row + 1) * self.side):
                if y in down:
                    order += (
                        x // self.side * self.tile_tokens + y % self.side * self.side + x % self.side for x in across
                    )
                    order.append(self.tile_tokens - 1)
            if order:
                yield MosaicSpan(tuple(self.span(1 + row * cols + col) for col in range(cols)), tuple(order))

    def span(self, index: int) -> TileSpan:
        return TileSpan(index, (1, self.tile_tokens))


DECODERS = ("llama", "qwen2")


def matches(metadata: dict[str, Any]) -> bool:
    return has_grids(metadata) and SHRUNK not in metadata


def has_grids(metadata: dict[str, Any]) -> bool:
    """Return whether the metadata are those of a projector for pictures in tiles."""
    return projector_type(metadata) == "mlp" and bool(metadata.get(_KEY))


def from_metadata(metadata: dict[str, Any]) -> LlavaNext:
    """Read an mmproj. Its grids are a list of widths and heights by turns, as llama.cpp's own converter writes it."""
    tile, side = read_fixed_size(metadata, 1)
    edges = metadata[_KEY]
    if not isinstance(edges, list | tuple) or len(edges) % 2 or not all(type(edge) is int for edge in edges):
        raise ValueError(f"{_KEY} is {quoted(edges)}, must be pairs of numbers")
    if any(edge % tile or not 0 < edge <= _MAX_TILES * tile for edge in edges):
        raise ValueError(f"{_KEY} is {quoted(edges)}, must be multiples of {tile}, at most {_MAX_TILES} times as much")
    return LlavaNext(tile, side, tuple((width, height) for width, height in zip(edges[::2], edges[1::2], strict=True)))


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes, inner = read_sizes(header), rows(header, "mm.0.weight")
    class_token = any(tensor.name == CLASS_TOKEN for tensor in header.tensors)
    return EncoderTensors(
        sizes,
        required={**table(sizes, class_token), **linear("mm.0", sizes.hidden, inner)},
        optional={
            CLASS_TOKEN: (sizes.hidden,),
            "v.patch_embd.bias": (sizes.hidden,),
            "v.image_newline": (sizes.output,),
            **linear("mm.2", inner, sizes.output),
        },
        layer=separate(sizes),
    )


def best_grid(size: Size, grids: list[Size]) -> Size:
    """Return the grid that shows most of the picture's pixels; of those, the one with the least padding."""

    def score(grid: Size) -> tuple[int, int]:
        scale = min(grid[0] / size[0], grid[1] / size[1])
        shown = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return shown, shown - grid[0] * grid[1]

    return max(grids, key=score)


def fitted(size: Size, grid: Size) -> Size:
    """Return the picture's size within a grid, which it fills along one edge."""
    across, down = grid[0] / size[0], grid[1] / size[1]
    if across < down:
        return grid[0], min(math.ceil(size[1] * across), grid[1])
    return min(math.ceil(size[0] * down), grid[0]), grid[1]


def _unpadded(size: Size, cells: Size) -> tuple[range, range]:
    """Return the columns and rows of the grid's `cells` that a picture, centred in the grid, covers."""
    cols, rows = cells
    if size[0] / size[1] > cols / rows:
        padding = (rows - int(round(size[1] * (cols / size[0]), 7))) // 2
        return range(cols), range(padding, rows - padding)
    padding = (cols - int(round(size[0] * (rows / size[1]), 7))) // 2
    return range(padding, cols - padding), range(rows)
