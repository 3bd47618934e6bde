"""What libmtmd is told of every vision transformer's layers."""

from __future__ import annotations

from typing import Protocol

from pocketvlm_converters.weights import Value


class Layers(Protocol):
    """`hidden` values a patch, `inner` in the MLP."""

    @property
    def hidden(self) -> int: ...
    @property
    def inner(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...


def layer_sizes(of: Layers, epsilon: float) -> dict[str, Value]:
    """Keys of the mmproj file; `epsilon` is that of the norms."""
    return {
        "clip.vision.embedding_length": of.hidden,
        "clip.vision.feed_forward_length": of.inner,
        "clip.vision.block_count": of.layers,
        "clip.vision.attention.head_count": of.heads,
        "clip.vision.attention.layer_norm_epsilon": epsilon,
    }
