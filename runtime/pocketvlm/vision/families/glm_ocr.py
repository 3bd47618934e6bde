"""GLM-OCR: one tile of about the picture's own size; the chat template writes the tokens around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.dynamic_size import DynamicSize, read_dynamic


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "glm4v"


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    found = read_dynamic(
        metadata,
        least=112 * 112 // 2,  # as the published checkpoint has them, for one of two frames
        most=9633792 // 2,
        image_token="<|image|>",
        around=("<|begin_of_image|>", "<|end_of_image|>"),
    )
    return replace(found, edges_first=True)
