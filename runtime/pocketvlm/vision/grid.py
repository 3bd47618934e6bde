"""Pictures resized with Pillow and cut into a grid of square tiles."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image

from pocketvlm.vision.family import RGB

Size = tuple[int, int]  # (width, height) in pixels, or (columns, rows)


def grids(least: int, most: int) -> list[Size]:
    """Every grid of `least` to `most` tiles, the fewest tiles first, then the fewest columns."""
    found = ((cols, rows) for cols in range(1, most + 1) for rows in range(1, most // cols + 1))
    return sorted((grid for grid in found if grid[0] * grid[1] >= least), key=math.prod)


def nearest(size: Size, tile: int, choice: Iterable[Size]) -> Size | None:
    """The first grid of `choice` nearest in proportions to a picture of this size; None where there is none.

    Of two that are equally near, the later one where the picture has more than half of its pixels.
    """
    ratio, area = size[0] / size[1], size[0] * size[1]
    best, least = None, math.inf
    for cols, rows in choice:
        away = abs(ratio - cols / rows)
        if away < least or (away == least and area > 0.5 * tile**2 * cols * rows):
            best, least = (cols, rows), away
    return best


def within(size: Size, most: int) -> Size:
    """The largest grid of at most `most` cells in about the proportions of `size`."""
    scale = math.sqrt(most / (size[0] * size[1]))
    short, long = (max(1, math.floor(edge * scale)) for edge in sorted(size))
    long = min(long, max(1, most // short))
    return (long, short) if size[0] >= size[1] else (short, long)


def cut(picture: Image.Image, tile: int) -> list[RGB]:
    """Its tiles of `tile` x `tile` pixels, row by row."""
    corners = ((left, top) for top in range(0, picture.height, tile) for left in range(0, picture.width, tile))
    return [np.asarray(picture.crop((left, top, left + tile, top + tile))) for left, top in corners]


def resized(picture: Image.Image, size: Size, resampling: Image.Resampling) -> Image.Image:
    """A picture that has the size already stays as it is."""
    return picture if picture.size == size else picture.resize(size, resampling)
