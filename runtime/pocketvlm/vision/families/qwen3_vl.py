"""Qwen3-VL: one tile of about the picture's own size; the chat template writes the tokens around it.

Of a video, each two frames are a tile, after a text with their time. The numbers are those of transformers'
Qwen3VLVideoProcessor, the texts those of its processor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.dynamic_size import DynamicSize, read_dynamic
from pocketvlm.vision.dynamic_video import DynamicVideo, read_limits
from pocketvlm.vision.encoder_tensors import (
    EncoderTensors,
    axial_sizes,
    fused,
    linear,
    merger,
    norm,
    second_frame,
    square_table,
)
from pocketvlm.vision.family import TileSpan
from pocketvlm.vision.video import Frames, VideoPlan

DECODERS = ("qwen3vl",)
PROJECTOR = "qwen3vl_merger"
_BEGIN, _END = "<|vision_start|>", "<|vision_end|>"


@dataclass(frozen=True)
class Qwen3Video(DynamicVideo):
    """The limits are those of all frames together, of which there is an even number."""

    def plan(self, frames: Frames, detail: Detail, max_tokens: int | None) -> VideoPlan:
        times, together = frames.times, max(len(frames.times), self.frames)
        used = self.used_size(frames.size, detail, max_tokens, together=together, edges_first=True)
        layout: list[str | TileSpan] = []
        for span in self.spans(used, len(times)):
            first, last = times[self.frames * span.index], times[min(self.frames * span.index + 1, len(times) - 1)]
            layout += [f"<{(first + last) / 2:.1f} seconds>{_BEGIN}", span, _END]
        return VideoPlan(frames.size, (used,), tuple(layout), self.frames)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == PROJECTOR and has_deepstack(metadata)


def has_deepstack(metadata: dict[str, Any]) -> bool:
    flags = metadata.get("clip.vision.is_deepstack_layers")
    return isinstance(flags, list) and any(flags)


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    family = read_dynamic(
        metadata,
        min_pixels=64 * 32 * 32,  # as in published checkpoints
        max_pixels=16384 * 32 * 32,
        image_token="<|image_pad|>",
        around=(_BEGIN, _END),
    )
    limits = read_limits(metadata, min_pixels=4096, max_pixels=25165824)  # as in published checkpoints
    return replace(family, video=Qwen3Video(family.factor, *limits))


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = axial_sizes(header)
    flags = header.array("clip.vision.is_deepstack_layers")
    deepstack = {
        name: shape
        for number in (number for number, flag in enumerate(flags) if flag)
        for name, shape in {
            **norm(f"v.deepstack.{number}.norm", sizes.merged),
            **linear(f"v.deepstack.{number}.fc1", sizes.merged, sizes.merged),
            **linear(f"v.deepstack.{number}.fc2", sizes.merged, sizes.output),
        }.items()
    }
    patches = {**second_frame(sizes), "v.patch_embd.bias": (sizes.hidden,), **square_table(header, sizes)}
    return EncoderTensors(sizes, required={**patches, **merger(sizes), **deepstack}, layer=fused(sizes), axes=True)
