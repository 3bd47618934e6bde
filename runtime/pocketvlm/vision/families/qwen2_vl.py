"""Qwen2-VL: one tile of about the picture's own size; the chat template writes the tokens around it.

Of a video, each two frames are a tile, and tiles follow each other without text. Their positions say when they were
shown: one more for each tile. Frames are sized as by transformers' Qwen2VLVideoProcessor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.dynamic_size import DynamicSize, read_dynamic
from pocketvlm.vision.dynamic_video import DynamicVideo, read_limits
from pocketvlm.vision.encoder_tensors import EncoderTensors, axial_sizes, merger, second_frame, separate
from pocketvlm.vision.video import Frames, VideoPlan

DECODERS = ("qwen2vl",)
_NEARLY = 1e-6  # below what positions can tell: keeps 2.9999999 from becoming 2


@dataclass(frozen=True)
class Qwen2Video(DynamicVideo):
    """`rate` is the number of positions in a second: `tokens_per_second` of the checkpoint; 0: one for each tile.

    Positions of tiles are different even where the rate would give two of them the same one.
    """

    rate: int = 0

    def plan(self, frames: Frames, detail: Detail, max_tokens: int | None) -> VideoPlan:
        times, used = frames.times, self.used_size(frames.size, detail, max_tokens)
        spans = self.spans(used, len(times))
        steps: list[int] = []
        for index in range(len(spans)):
            step = int(self.rate * (times[self.frames * index] - times[0]) + _NEARLY) if self.rate else index
            steps.append(max(step, steps[-1] + 1) if steps else 0)
        return VideoPlan(frames.size, (used,), tuple(spans), self.frames, tuple(steps))


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "qwen2vl_merger"


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    return with_video(metadata, rate=0)


def with_video(metadata: dict[str, Any], rate: int) -> DynamicSize:
    """Return the family of an mmproj, whose videos have `rate` positions in a second."""
    family = read_dynamic(
        metadata,
        min_pixels=56 * 56,  # as in published checkpoints
        max_pixels=16384 * 28 * 28,
        image_token="<|image_pad|>",
        around=("<|vision_start|>", "<|vision_end|>"),
    )
    limits = read_limits(metadata, min_pixels=56 * 56, max_pixels=16384 * 28 * 28)
    return replace(family, video=Qwen2Video(family.factor, *limits, rate))


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = axial_sizes(header)
    biases = {f"attn_{x}.bias": (sizes.hidden,) for x in "qkv"}
    return EncoderTensors(
        sizes, required={**second_frame(sizes), **merger(sizes)}, layer={**separate(sizes), **biases}, axes=True
    )
