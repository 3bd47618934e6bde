"""Qwen3-VL: one tile of about the picture's own size; the chat template writes the tokens around it."""

from __future__ import annotations

from typing import Any

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.vision.dynamic_size import DynamicSize, read_dynamic
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

DECODERS = ("qwen3vl",)
PROJECTOR = "qwen3vl_merger"


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == PROJECTOR and has_deepstack(metadata)


def has_deepstack(metadata: dict[str, Any]) -> bool:
    flags = metadata.get("clip.vision.is_deepstack_layers")
    return isinstance(flags, list) and any(flags)


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    return read_dynamic(
        metadata,
        min_pixels=64 * 32 * 32,  # as in published checkpoints
        max_pixels=16384 * 32 * 32,
        image_token="<|image_pad|>",
        around=("<|vision_start|>", "<|vision_end|>"),
    )


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
