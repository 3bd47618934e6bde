"""Qwen2.5-VL: it prepares pictures as Qwen2-VL does."""

from __future__ import annotations

from typing import Any

from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.families.qwen2_vl import DECODERS, from_metadata, tensors

__all__ = ["DECODERS", "from_metadata", "matches", "tensors"]


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "qwen2.5vl_merger"
