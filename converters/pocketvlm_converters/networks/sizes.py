"""Metadata of the layers of a vision transformer, for libmtmd."""

from __future__ import annotations

from typing import Protocol

from pocketvlm_converters.weights import Value


class Layers(Protocol):
    """Sizes of an encoder: `hidden` values per patch, `inner` values in the MLP."""

    @property
    def hidden(self) -> int: ...
    @property
    def inner(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...


def layer_sizes(encoder: Layers, epsilon: float) -> dict[str, Value]:
    """Return the keys of the mmproj file; `epsilon` is that of the norms."""
    return {
        "clip.vision.embedding_length": encoder.hidden,
        "clip.vision.feed_forward_length": encoder.inner,
        "clip.vision.block_count": encoder.layers,
        "clip.vision.attention.head_count": encoder.heads,
        "clip.vision.attention.layer_norm_epsilon": epsilon,
    }
