"""GLM-OCR: one tile of about the picture's own size; the chat template writes the tokens around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.dynamic_size import DynamicSize, read_dynamic


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "glm4v"


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    family = read_dynamic(
        metadata,
        min_pixels=112 * 112 // 2,  # as in the published checkpoint, for one of two frames
        max_pixels=9633792 // 2,
        image_token="<|image|>",
        around=("<|begin_of_image|>", "<|end_of_image|>"),
    )
    return replace(family, edges_first=True)
