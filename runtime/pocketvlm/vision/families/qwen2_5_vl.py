"""Qwen2.5-VL: one tile of about the picture's own size; the chat template writes the tokens around it."""

from __future__ import annotations

from typing import Any

from pocketvlm.vision.dynamic import LEAST_PIXELS, MOST_PIXELS, DynamicSize


def matches(metadata: dict[str, Any]) -> bool:
    return metadata.get("clip.projector_type") == "qwen2.5vl_merger"


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    """Files of llama.cpp's own converter lack the last three keys."""
    merge = int(metadata.get("clip.vision.spatial_merge_size", 2))
    return DynamicSize(
        factor=int(metadata["clip.vision.patch_size"]) * merge,
        least=int(metadata.get("clip.vision.image_min_pixels", LEAST_PIXELS)),
        most=int(metadata.get("clip.vision.image_max_pixels", MOST_PIXELS)),
        image_token="<|image_pad|>",
        around=("<|vision_start|>", "<|vision_end|>"),
    )
