"""Read the size of square tiles from an encoder's metadata, and check it: files may come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping

from pocketvlm.errors import quoted

_MAX_EDGE = 4096  # pixels: four times what encoders have
_MAX_TOKENS = 128  # along an edge


def read_fixed_size(metadata: Mapping[str, object], pooled: int | None = None) -> tuple[int, int]:
    """Return the edge of a tile in pixels, and the embeddings along it: image_size / patch_size / scale_factor.

    `pooled` is the scale_factor if the file has none. Raises KeyError for a missing key, ValueError for a value that no
    encoder has.
    """
    key = "clip.vision.projector.scale_factor"
    edge = positive(metadata, "clip.vision.image_size", most=_MAX_EDGE)
    patch = positive(metadata, "clip.vision.patch_size", most=edge)
    side = edge // patch // positive(metadata, key, pooled, most=edge)
    if not 1 <= side <= _MAX_TOKENS:
        raise ValueError(f"{side} embeddings along a tile of {edge} pixels, must be 1 to {_MAX_TOKENS}")
    return edge, side


def positive(metadata: Mapping[str, object], key: str, default: int | None = None, *, most: int) -> int:
    """Return an integer of 1 to `most`. Raises KeyError where it is missing without a default, else ValueError."""
    value = metadata[key] if default is None else metadata.get(key, default)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{key} is {quoted(value)}, must be 1 to {most:,}")
    return value
