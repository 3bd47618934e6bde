"""Gemma 4: one tile in the picture's proportions, as large as a budget of embeddings allows.

The numbers are those of transformers' Gemma4ImageProcessor (Pillow backend). Each frame of a video is a tile within a
budget of its own, after its time, as Gemma4VideoProcessor and Gemma4Processor have them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from pocketvlm.errors import ImageError, ModelFormatError
from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import SCALE, TABLE, EncoderTensors, read_sizes, separate
from pocketvlm.vision.family import RGB, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import positive
from pocketvlm.vision.grid import resized
from pocketvlm.vision.video import Frames, VideoPlan, clock, resized_frame

_BUDGETS = (70, 140, 280, 560, 1120)  # embeddings of a picture that the model was trained with
_BEGIN, _END = "<|image>", "<image|>"
# Widths of language models with causal attention within pictures, for files that do not say so.
_CAUSAL_WIDTHS = (1536, 2560)
_MAX_PATCH, _MAX_TOKENS = 256, 1 << 14  # pixels, and embeddings of a picture


@dataclass(frozen=True)
class Gemma4:
    """`cell` is patch_size * pooling_kernel_size in pixels, `tokens` the image processor's max_soft_tokens.

    `video_tokens` is that of the video processor.
    """

    cell: int
    tokens: int
    non_causal: bool
    image_token: str = "<|image|>"
    video_tokens: int = _BUDGETS[0]

    @property
    def video(self) -> Gemma4Video:
        return Gemma4Video(self.cell, min(self.video_tokens, self.tokens))

    @property
    def tile_tokens(self) -> int:
        return self.tokens

    def control_tokens(self) -> tuple[str, ...]:
        return (_BEGIN, _END)

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        """Return a plan. `auto` uses the smallest budget that holds the picture's own size, `low` the smallest one."""
        wanted = {"high": self.tokens, "low": _BUDGETS[0], "auto": -(-size[0] * size[1] // self.cell**2)}[detail]
        budget = min(next((known for known in _BUDGETS if known >= wanted), self.tokens), self.tokens)
        if max_tokens is not None and max_tokens < budget:
            budget = max((known for known in _BUDGETS if known <= max_tokens), default=max_tokens)
        used = _fit(size, self.cell, budget)
        span = TileSpan(0, (used[1] // self.cell, used[0] // self.cell))
        return PicturePlan(original=size, resizes=(used,), layout=(_BEGIN, span, _END))

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """Return one tile, uint8 [height, width, 3]."""
        return [np.asarray(resized(Image.fromarray(image), plan.used, Image.Resampling.BICUBIC))]


def _fit(size: tuple[int, int], cell: int, budget: int) -> tuple[int, int]:
    """Return the largest size in proportion, in multiples of `cell`, with at most `budget` cells and at least one."""
    scale = math.sqrt(budget * cell**2 / (size[0] * size[1]))
    width, height = (math.floor(edge * scale / cell) for edge in size)
    if not height:
        width, height = min(size[0] // size[1], budget), 1
    elif not width:
        width, height = 1, min(size[1] // size[0], budget)
    if not 0 < width * height <= budget:
        raise ImageError(f"a picture of {size[0]}x{size[1]} does not fit {budget} embeddings")
    return width * cell, height * cell


@dataclass(frozen=True)
class Gemma4Video:
    """A frame has at most `tokens` embeddings, for every `detail`."""

    cell: int
    tokens: int
    token: ClassVar[str] = "<|video|>"
    frames: ClassVar[int] = 1
    needs_template: ClassVar[bool] = False

    def plan(self, frames: Frames, detail: Detail, max_tokens: int | None) -> VideoPlan:  # noqa: ARG002
        used = _fit(frames.size, self.cell, min(self.tokens, max_tokens or self.tokens))
        layout: list[str | TileSpan] = []
        for index, time in enumerate(frames.times):
            begin = f"{' ' if index else ''}{clock(time)} {_BEGIN}"
            layout += [begin, TileSpan(index, (used[1] // self.cell, used[0] // self.cell)), _END]
        return VideoPlan(frames.size, (used,), tuple(layout))

    def frame(self, image: RGB, plan: VideoPlan) -> RGB:
        return resized_frame(image, plan, Image.Resampling.BICUBIC)


DECODERS = ("gemma4",)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "gemma4v"


def from_metadata(metadata: dict[str, Any]) -> Gemma4:
    """Read an mmproj. Files of llama.cpp's own converter lack the pocketvlm keys."""
    patch = positive(metadata, "clip.vision.patch_size", most=_MAX_PATCH)
    pool = positive(metadata, "clip.vision.projector.scale_factor", 3, most=_MAX_PATCH)
    causal = metadata.get("clip.vision.projection_dim") in _CAUSAL_WIDTHS
    return Gemma4(
        cell=patch * pool,
        tokens=positive(metadata, "pocketvlm.picture_tokens", 280, most=_MAX_TOKENS),
        non_causal=bool(metadata.get("pocketvlm.non_causal", not causal)),
        video_tokens=positive(metadata, "pocketvlm.video_tokens", _BUDGETS[0], most=_MAX_TOKENS),
    )


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = read_sizes(header, SCALE, 3)
    edge = from_metadata(header.metadata).tokens * sizes.merge  # patches along a picture of one row
    if sizes.positions < edge:
        raise ModelFormatError(f"{TABLE} has {sizes.positions} rows, its pictures need {edge}", header.path)
    norms = dict.fromkeys(("attn_post_norm.weight", "ffn_post_norm.weight"), (sizes.hidden,))
    return EncoderTensors(
        sizes,
        required={
            TABLE: (sizes.hidden, sizes.positions, 2),
            "mm.input_projection.weight": (sizes.hidden, sizes.output),
        },
        optional=dict.fromkeys(("v.std_bias", "v.std_scale"), (sizes.hidden,)),
        layer=separate(sizes),
        layer_optional={**norms, **dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), (sizes.head,))},
    )
