"""Qwen2.5-VL: one tile of about the picture's own size; the chat template writes the tokens around it."""

from __future__ import annotations

from typing import Any

from pocketvlm.vision.dynamic import LEAST_PIXELS, MOST_PIXELS, DynamicSize
from pocketvlm.vision.square import positive

# In pixels, far above what models have: a small picture is enlarged to at least these.
_LARGEST, _LARGEST_LEAST = 64, 1 << 26


def matches(metadata: dict[str, Any]) -> bool:
    return metadata.get("clip.projector_type") == "qwen2.5vl_merger"


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    """Files of llama.cpp's own converter lack the last three keys."""
    merge = positive(metadata, "clip.vision.spatial_merge_size", 2, most=_LARGEST)
    return DynamicSize(
        factor=positive(metadata, "clip.vision.patch_size", most=_LARGEST) * merge,
        least=positive(metadata, "clip.vision.image_min_pixels", LEAST_PIXELS, most=_LARGEST_LEAST),
        most=positive(metadata, "clip.vision.image_max_pixels", MOST_PIXELS, most=2**31 - 1),
        image_token="<|image_pad|>",
        around=("<|vision_start|>", "<|vision_end|>"),
    )
