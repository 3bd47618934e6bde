"""Square tiles of one size, as an encoder's metadata describes them. A stranger's file may say anything."""

from __future__ import annotations

from collections.abc import Mapping

_LARGEST = 4096  # pixels: four times what encoders have
_MOST_TOKENS = 128  # along an edge


def read_fixed_size(metadata: Mapping[str, object], pooled: int | None = None) -> tuple[int, int]:
    """The edge of a tile in pixels, and how many embeddings lie along it: image_size / patch_size / scale_factor.

    `pooled` is the scale_factor where the file is silent. Raises KeyError for a key that is missing, ValueError for a
    value that no encoder has.
    """
    key = "clip.vision.projector.scale_factor"
    edge = positive(metadata, "clip.vision.image_size", most=_LARGEST)
    patch = positive(metadata, "clip.vision.patch_size", most=edge)
    along = edge // patch // positive(metadata, key, pooled, most=edge)
    if not 1 <= along <= _MOST_TOKENS:
        raise ValueError(f"{along} embeddings along a tile of {edge} pixels")
    return edge, along


def positive(metadata: Mapping[str, object], key: str, default: int | None = None, *, most: int) -> int:
    """An integer of 1 to `most`; KeyError where it is missing and there is no default, else ValueError."""
    value = metadata[key] if default is None else metadata.get(key, default)
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{key} is {value!r}, must be 1 to {most:,}")
    return value
