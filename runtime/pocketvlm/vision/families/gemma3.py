"""Gemma 3: every picture is one square tile, as transformers' Gemma3Processor lays it out without pan and scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import SCALE, EncoderTensors, read_sizes, separate, table
from pocketvlm.vision.family import RGB, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import read_fixed_size

_BEGIN, _END = "<start_of_image>", "<end_of_image>"
_BILINEAR = Image.Resampling.BILINEAR
_POOLED = 4  # libmtmd's default for files without a scale factor


@dataclass(frozen=True)
class Gemma3:
    """`tile` is vision_config.image_size in pixels; `tokens_per_side` is image_size / patch_size / scale_factor."""

    tile: int
    tokens_per_side: int
    non_causal: bool = True
    image_token: str = _BEGIN

    @property
    def tile_tokens(self) -> int:
        return self.tokens_per_side**2

    def control_tokens(self) -> tuple[str, ...]:
        return (_BEGIN, _END)

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:  # noqa: ARG002
        """Return the same plan for every `detail` and limit: a picture always has the same number of tokens."""
        grid = (self.tokens_per_side, self.tokens_per_side)
        layout = (f"\n\n{_BEGIN}", TileSpan(0, grid), f"{_END}\n\n")
        return PicturePlan(original=size, resizes=((self.tile, self.tile),), layout=layout)

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """Return one tile, uint8 [tile, tile, 3]. The picture is stretched."""
        picture = Image.fromarray(image)
        return [np.asarray(picture if picture.size == plan.used else picture.resize(plan.used, _BILINEAR))]


DECODERS = ("gemma3",)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "gemma3"


def from_metadata(metadata: dict[str, Any]) -> Gemma3:
    return Gemma3(*read_fixed_size(metadata, _POOLED))


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = read_sizes(header, SCALE, _POOLED)
    return EncoderTensors(
        sizes,
        required={
            **table(sizes),
            "mm.soft_emb_norm.weight": (sizes.hidden,),
            "mm.input_projection.weight": (sizes.output, sizes.hidden),
        },
        optional={"v.patch_embd.bias": (sizes.hidden,)},
        layer=separate(sizes),
    )
