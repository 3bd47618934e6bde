"""Qwen3-VL: one tile of about the picture's own size; the chat template writes the tokens around it."""

from __future__ import annotations

from typing import Any

from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.dynamic_size import DynamicSize, read_dynamic


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "qwen3vl_merger"


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    return read_dynamic(
        metadata,
        min_pixels=64 * 32 * 32,  # as in published checkpoints
        max_pixels=16384 * 32 * 32,
        image_token="<|image_pad|>",
        around=("<|vision_start|>", "<|vision_end|>"),
    )
