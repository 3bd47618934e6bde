"""Qwen3.5: it prepares pictures as Qwen3-VL does. Its files differ only in that they lack deepstack projectors."""

from __future__ import annotations

from typing import Any

from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.families.qwen3_vl import PROJECTOR, from_metadata, has_deepstack, tensors

__all__ = ["DECODERS", "from_metadata", "matches", "tensors"]

DECODERS = ("qwen35",)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == PROJECTOR and not has_deepstack(metadata)
