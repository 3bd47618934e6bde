"""PaddleOCR-VL: one tile of about the picture's own size; the chat template writes the tokens around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.dynamic_size import DynamicSize, read_dynamic
from pocketvlm.vision.encoder_tensors import (
    EncoderTensors,
    axial_sizes,
    linear,
    norm,
    separate,
    square_table,
)
from pocketvlm.vision.family import PicturePlan
from pocketvlm.vision.grid import Size

DECODERS = ("paddleocr",)


@dataclass(frozen=True)
class PaddleOCRVL(DynamicSize):
    """A short edge is enlarged to `factor` before all else, the other one in proportion, each rounded by itself."""

    def plan(self, size: Size, detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        width, height = size
        if height < self.factor:
            width, height = round(width * self.factor / height), self.factor
        if width < self.factor:
            width, height = self.factor, round(height * self.factor / width)
        return replace(super().plan((width, height), detail, max_tokens), original=size)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "paddleocr"


def from_metadata(metadata: dict[str, Any]) -> PaddleOCRVL:
    family = read_dynamic(
        metadata,
        min_pixels=147384,  # as in the published checkpoint
        max_pixels=2822400,
        image_token="<|IMAGE_PLACEHOLDER|>",
        around=("<|IMAGE_START|>", "<|IMAGE_END|>"),
    )
    return PaddleOCRVL(**vars(family))


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = axial_sizes(header)
    return EncoderTensors(
        sizes,
        required={
            **square_table(header, sizes),
            "v.patch_embd.bias": (sizes.hidden,),
            **norm("mm.input_norm", sizes.hidden),
            **linear("mm.1", sizes.merged, sizes.merged),
            **linear("mm.2", sizes.merged, sizes.output),
        },
        layer={**separate(sizes), **{f"attn_{x}.bias": (sizes.hidden,) for x in "qkv"}},
        axes=True,
    )
