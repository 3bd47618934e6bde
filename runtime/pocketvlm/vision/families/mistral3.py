"""Mistral Small 3.1 and Pixtral: one tile of about the picture's own size, whose rows end with a token of their own.

Same numbers as transformers' Pixtral image processor (Pillow backend) and prompt layout as its processor. The encoder
puts the embeddings of `[IMG_BREAK]` between the rows itself, as libmtmd does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.family import RGB, Detail, PicturePlan, RowEnd, TileSpan
from pocketvlm.vision.fixed_size import positive
from pocketvlm.vision.grid import resized

_BREAK, _END = "[IMG_BREAK]", "[IMG_END]"
_AUTO, _LOW = 1024, 256  # embeddings, those of rows' ends among them
_LARGEST, _LARGEST_PATCH = 1 << 14, 64  # pixels, far above what models have


@dataclass(frozen=True)
class Mistral3:
    """`factor` is patch_size * spatial_merge_size and `longest` preprocessor_config's size.longest_edge, in pixels.

    Attention costs the square of the patches, so `auto` stops at 1024 embeddings, as for other encoders of this kind.
    """

    factor: int
    longest: int
    non_causal: bool = False
    image_token: str = "[IMG]"

    @property
    def tile_tokens(self) -> int:
        return self._span((self.longest, self.longest)).tokens

    @property
    def row_end(self) -> RowEnd:
        """libmtmd makes these from memory that nobody set, times 0: NaN where it was NaN."""
        return RowEnd(("v.token_embd.img_break",), self.factor)

    def control_tokens(self) -> tuple[str, ...]:
        return (_BREAK, _END)

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        own = {"high": None, "auto": _AUTO, "low": _LOW}[detail]
        limit = min((most for most in (own, max_tokens) if most is not None), default=None)
        span = self._span(_within(size, self.longest))
        below = range((self.longest - 1) // self.factor * self.factor, 0, -self.factor)
        for longest in below:  # the reference's procedure, with a shorter longest edge
            if limit is None or span.tokens <= limit:
                break
            span = self._span(_within(size, longest))
        used = (span.grid[1] * self.factor, span.grid[0] * self.factor)
        return PicturePlan(original=size, resizes=(used,), layout=(span, _END))

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """One uint8 [height, width, 3]."""
        return [np.asarray(resized(Image.fromarray(image), plan.used, Image.Resampling.BICUBIC))]

    def _span(self, size: tuple[int, int]) -> TileSpan:
        """As many rows and columns as cover a picture of this size."""
        width, height = size
        return TileSpan(0, (-(-height // self.factor), -(-width // self.factor)), _BREAK)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "pixtral"


def from_metadata(metadata: dict[str, Any]) -> Mistral3:
    """Files of llama.cpp's own converter have the same keys; Pixtral merges no patches and may lack that one."""
    merge = positive(metadata, "clip.vision.spatial_merge_size", 1, most=_LARGEST_PATCH)
    factor = positive(metadata, "clip.vision.patch_size", most=_LARGEST_PATCH) * merge
    return Mistral3(factor, positive(metadata, "clip.vision.image_size", most=_LARGEST))


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """In proportion, both edges rounded down to at most `longest`; never enlarged, and never to nothing."""
    ratio = max(edge / longest for edge in size)
    if ratio <= 1:
        return size
    width, height = (max(1, int(edge / ratio)) for edge in size)
    return width, height
