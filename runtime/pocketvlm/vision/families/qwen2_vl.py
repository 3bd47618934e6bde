"""Qwen2-VL: one tile of about the picture's own size; the chat template writes the tokens around it."""

from __future__ import annotations

from typing import Any

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.vision.dynamic_size import DynamicSize, read_dynamic
from pocketvlm.vision.encoder_tensors import EncoderTensors, axial_sizes, merger, second_frame, separate

DECODERS = ("qwen2vl",)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "qwen2vl_merger"


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    return read_dynamic(
        metadata,
        min_pixels=56 * 56,  # as in published checkpoints
        max_pixels=16384 * 28 * 28,
        image_token="<|image_pad|>",
        around=("<|vision_start|>", "<|vision_end|>"),
    )


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = axial_sizes(header)
    biases = {f"attn_{x}.bias": (sizes.hidden,) for x in "qkv"}
    return EncoderTensors(
        sizes, required={**second_frame(sizes), **merger(sizes)}, layer={**separate(sizes), **biases}, axes=True
    )
