"""InternVL3 and 3.5: square tiles in the grid whose proportions come nearest, then the whole picture as one more tile.

Same numbers as transformers' GotOcr2 image processor (Pillow backend) and prompt layout as its InternVL processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.family import RGB, Detail, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import positive, read_fixed_size
from pocketvlm.vision.grid import cut, grids, nearest, resized

_BEGIN, _END = "<img>", "</img>"
_BICUBIC = Image.Resampling.BICUBIC
_MOST_TILES = 1024  # models have 12
_FEWEST, _USUAL = 1, 12  # libmtmd's, where the file is silent


@dataclass(frozen=True)
class InternVL:
    """`tile` is vision_config.image_size in pixels; `tokens_per_side` is image_size / patch_size * downsample_ratio.

    A picture is cut into `least` to `most` tiles: preprocessor_config's min_patches and max_patches.
    """

    tile: int
    tokens_per_side: int
    least: int
    most: int
    non_causal: bool = False
    image_token: str = "<IMG_CONTEXT>"

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"pictures of {self.least} to {self.most} tiles")

    @property
    def tile_tokens(self) -> int:
        return self.tokens_per_side**2

    def control_tokens(self) -> tuple[str, ...]:
        return (_BEGIN, _END)

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        """`auto` is the reference's procedure with no more tiles than hold the picture's pixels."""
        most = 1 if detail == "low" else self.most
        if detail == "auto":
            most = min(most, max(self.least, math.ceil(size[0] / self.tile) * math.ceil(size[1] / self.tile)))
        if max_tokens is not None:
            most = min(most, max_tokens // self.tile_tokens - 1)  # the whole picture comes on top
        cols, rows = nearest(size, self.tile, grids(self.least, most)) or (1, 1)
        grid = (self.tokens_per_side, self.tokens_per_side)
        count = cols * rows
        spans = (TileSpan(index, grid) for index in range(count + 1 if count > 1 else 1))
        return PicturePlan(
            original=size, resizes=((cols * self.tile, rows * self.tile),), layout=(_BEGIN, *spans, _END)
        )

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """uint8 [tile, tile, 3] each: the grid row by row, then the whole picture."""
        picture, edge = Image.fromarray(image), self.tile
        crops = cut(resized(picture, plan.used, _BICUBIC), edge)
        if len(crops) > 1:
            crops.append(np.asarray(resized(picture, (edge, edge), _BICUBIC)))
        return crops


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "internvl"


def from_metadata(metadata: dict[str, Any]) -> InternVL:
    """Files of llama.cpp's own converter may lack the last two keys."""
    least = positive(metadata, "clip.vision.preproc_min_tiles", _FEWEST, most=_MOST_TILES)
    most = positive(metadata, "clip.vision.preproc_max_tiles", _USUAL, most=_MOST_TILES)
    return InternVL(*read_fixed_size(metadata), least, most)
