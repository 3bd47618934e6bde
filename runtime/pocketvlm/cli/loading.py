"""The model that a command names: a bundle, or a .gguf with or without its vision encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketvlm.vlm import VLM


def load(model: str | None, mmproj: str | None, **options: Any) -> VLM:
    """`options` are those of VLM.load."""
    from pocketvlm.vlm import VLM

    target, gguf = (None, model) if model and (mmproj or model.lower().endswith(".gguf")) else (model, None)
    return VLM.load(target, model=gguf, mmproj=mmproj, **options)
