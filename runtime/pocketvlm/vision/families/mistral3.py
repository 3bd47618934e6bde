"""Mistral Small 3.1 and Pixtral: one tile of about the picture's own size, with a break token between its rows.

The numbers are those of transformers' Pixtral image processor (Pillow backend), the prompt layout that of its
processor. Encoders put the embeddings of `[IMG_BREAK]` between the rows themselves, as libmtmd does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import MERGE, EncoderTensors, read_sizes, separate
from pocketvlm.vision.family import RGB, PicturePlan, RowEnd, TileSpan
from pocketvlm.vision.fixed_size import positive
from pocketvlm.vision.grid import resized

_BREAK, _END = "[IMG_BREAK]", "[IMG_END]"
_AUTO_TOKENS, _LOW_TOKENS = 1024, 256  # embeddings, including those of row ends
_MAX_EDGE, _MAX_PATCH = 1 << 14, 64  # pixels, far above what models have


@dataclass(frozen=True)
class Mistral3:
    """`factor` is patch_size * spatial_merge_size and `longest` preprocessor_config's size.longest_edge, in pixels.

    The cost of attention grows with the square of the patches, so `auto` stops at 1024 embeddings, as for other
    encoders of this kind.
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
        """The break token. libmtmd computes it from uninitialized memory times 0, which is NaN where that is NaN."""
        return RowEnd(("v.token_embd.img_break",), self.factor)

    def control_tokens(self) -> tuple[str, ...]:
        return (_BREAK, _END)

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        detail_limit = {"high": None, "auto": _AUTO_TOKENS, "low": _LOW_TOKENS}[detail]
        limit = min((limit for limit in (detail_limit, max_tokens) if limit is not None), default=None)
        span = self._span(_within(size, self.longest))
        shorter = range((self.longest - 1) // self.factor * self.factor, 0, -self.factor)
        for longest in shorter:  # the reference's procedure, with a shorter longest edge
            if limit is None or span.tokens <= limit:
                break
            span = self._span(_within(size, longest))
        used = (span.grid[1] * self.factor, span.grid[0] * self.factor)
        return PicturePlan(original=size, resizes=(used,), layout=(span, _END))

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """Return one tile, uint8 [height, width, 3]."""
        return [np.asarray(resized(Image.fromarray(image), plan.used, Image.Resampling.BICUBIC))]

    def _span(self, size: tuple[int, int]) -> TileSpan:
        """Return a span with as many rows and columns as cover a picture of this size."""
        width, height = size
        return TileSpan(0, (-(-height // self.factor), -(-width // self.factor)), _BREAK)


DECODERS = ("llama", "mistral3")


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "pixtral"


def from_metadata(metadata: dict[str, Any]) -> Mistral3:
    """Read an mmproj. Pixtral does not merge patches, and its files may lack spatial_merge_size."""
    merge = positive(metadata, "clip.vision.spatial_merge_size", 1, most=_MAX_PATCH)
    factor = positive(metadata, "clip.vision.patch_size", most=_MAX_PATCH) * merge
    return Mistral3(factor, positive(metadata, "clip.vision.image_size", most=_MAX_EDGE))


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = read_sizes(header, MERGE, 1)
    merger = {"mm.input_norm.weight": (sizes.hidden,), "mm.patch_merger.weight": (sizes.merged, sizes.hidden)}
    return EncoderTensors(
        sizes,
        required={
            "mm.1.weight": (sizes.hidden, sizes.output),
            "mm.2.weight": (sizes.output, sizes.output),
            "v.token_embd.img_break": (sizes.output,),
            **(merger if sizes.merge > 1 else {}),
        },
        optional=dict.fromkeys(("mm.1.bias", "mm.2.bias"), (sizes.output,)),
        layer=separate(sizes),
    )


def _within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return the size in proportion with edges of 1 to `longest` pixels, rounded down and never enlarged."""
    ratio = max(edge / longest for edge in size)
    if ratio <= 1:
        return size
    width, height = (max(1, int(edge / ratio)) for edge in size)
    return width, height
