"""InternVL3 and 3.5: square tiles in the grid of the nearest proportions, then the whole picture as one more tile.

The numbers are those of transformers' GotOcr2 image processor (Pillow backend), the prompt layout that of its InternVL
processor. Each frame of a video is one tile after its number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from pocketvlm.errors import ModelFormatError
from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import (
    CLASS_TOKEN,
    SCALE,
    EncoderTensors,
    linear,
    norm,
    read_sizes,
    separate,
    table,
)
from pocketvlm.vision.family import RGB, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import positive, read_fixed_size
from pocketvlm.vision.grid import cut, grids, nearest, resized
from pocketvlm.vision.video import Frames, VideoPlan, resized_frame

_BEGIN, _END = "<img>", "</img>"
_BICUBIC = Image.Resampling.BICUBIC
_TILE_LIMIT = 1024  # models have 12 tiles
_MIN_TILES, _MAX_TILES = 1, 12  # libmtmd's defaults for files without these keys


@dataclass(frozen=True)
class InternVL:
    """`tile` is vision_config.image_size in pixels; `tokens_per_side` is image_size / patch_size * downsample_ratio.

    A picture is cut into `min_tiles` to `max_tiles` tiles: preprocessor_config's min_patches and max_patches.
    """

    tile: int
    tokens_per_side: int
    min_tiles: int
    max_tiles: int
    non_causal: bool = False
    image_token: str = "<IMG_CONTEXT>"

    def __post_init__(self) -> None:
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"pictures of {self.min_tiles} to {self.max_tiles} tiles")

    @property
    def video(self) -> InternVLVideo:
        return InternVLVideo(self.tile, self.tokens_per_side)

    @property
    def tile_tokens(self) -> int:
        return self.tokens_per_side**2

    def control_tokens(self) -> tuple[str, ...]:
        return (_BEGIN, _END)

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        """Return a plan. `auto` is the reference's procedure with no more tiles than hold the picture's pixels."""
        max_tiles = 1 if detail == "low" else self.max_tiles
        if detail == "auto":
            tiles = math.ceil(size[0] / self.tile) * math.ceil(size[1] / self.tile)
            max_tiles = min(max_tiles, max(self.min_tiles, tiles))
        if max_tokens is not None:
            max_tiles = min(max_tiles, max_tokens // self.tile_tokens - 1)  # one more tile shows the whole picture
        cols, rows = nearest(size, self.tile, grids(self.min_tiles, max_tiles)) or (1, 1)
        grid = (self.tokens_per_side, self.tokens_per_side)
        count = cols * rows
        spans = (TileSpan(index, grid) for index in range(count + 1 if count > 1 else 1))
        return PicturePlan(
            original=size, resizes=((cols * self.tile, rows * self.tile),), layout=(_BEGIN, *spans, _END)
        )

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """Return tiles, uint8 [tile, tile, 3] each: the grid row by row, then the whole picture."""
        picture, edge = Image.fromarray(image), self.tile
        crops = cut(resized(picture, plan.used, _BICUBIC), edge)
        if len(crops) > 1:
            crops.append(np.asarray(resized(picture, (edge, edge), _BICUBIC)))
        return crops


@dataclass(frozen=True)
class InternVLVideo:
    """Frames are stretched to one tile, for every `detail`."""

    tile: int
    tokens_per_side: int
    token: ClassVar[str] = "<video>"
    frames: ClassVar[int] = 1
    needs_template: ClassVar[bool] = False

    def plan(self, frames: Frames, detail: Detail, max_tokens: int | None) -> VideoPlan:  # noqa: ARG002
        layout: list[str | TileSpan] = []
        for index in range(len(frames.times)):
            begin = f"{chr(10) if index else ''}Frame{index + 1}: {_BEGIN}"
            layout += [begin, TileSpan(index, (self.tokens_per_side, self.tokens_per_side)), _END]
        return VideoPlan(frames.size, ((self.tile, self.tile),), tuple(layout))

    def frame(self, image: RGB, plan: VideoPlan) -> RGB:
        return resized_frame(image, plan, _BICUBIC)


DECODERS = ("qwen2", "qwen3")


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "internvl"


def from_metadata(metadata: dict[str, Any]) -> InternVL:
    """Read an mmproj. Files of llama.cpp's own converter may lack the numbers of tiles."""
    min_tiles = positive(metadata, "clip.vision.preproc_min_tiles", _MIN_TILES, most=_TILE_LIMIT)
    max_tiles = positive(metadata, "clip.vision.preproc_max_tiles", _MAX_TILES, most=_TILE_LIMIT)
    return InternVL(*read_fixed_size(metadata), min_tiles, max_tiles)


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = read_sizes(header, SCALE)
    if sizes.side % sizes.merge:
        raise ModelFormatError(f"merges {sizes.merge} of {sizes.side} patches along an edge", header.path)
    scales = dict.fromkeys(("ls1.weight", "ls2.weight", "attn_q_norm.weight", "attn_k_norm.weight"), (sizes.hidden,))
    return EncoderTensors(
        sizes,
        required={
            **table(sizes, 1),
            CLASS_TOKEN: (sizes.hidden,),
            **norm("mm.model.mlp.0", sizes.merged),
            **linear("mm.model.mlp.1", sizes.merged, sizes.output),
            **linear("mm.model.mlp.3", sizes.output, sizes.output),
        },
        optional={"v.patch_embd.bias": (sizes.hidden,)},
        layer=separate(sizes),
        layer_optional=scales,
    )
