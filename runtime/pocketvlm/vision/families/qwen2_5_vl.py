"""Qwen2.5-VL: it prepares pictures as Qwen2-VL does, and videos, too, but their positions in time count seconds."""

from __future__ import annotations

from typing import Any

from pocketvlm.files.gguf_header import projector_type
from pocketvlm.vision.dynamic_size import DynamicSize
from pocketvlm.vision.families.qwen2_vl import DECODERS, tensors, with_video
from pocketvlm.vision.fixed_size import positive

__all__ = ["DECODERS", "from_metadata", "matches", "tensors"]

_RATE, _MAX_RATE = 2, 1000  # positions in a second, as in published checkpoints; far above them


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "qwen2.5vl_merger"


def from_metadata(metadata: dict[str, Any]) -> DynamicSize:
    return with_video(metadata, positive(metadata, "pocketvlm.tokens_per_second", _RATE, most=_MAX_RATE))
