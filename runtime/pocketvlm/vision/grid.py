"""Resize pictures with Pillow, choose a grid of square tiles, and cut pictures into it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image

from pocketvlm.errors import ImageError
from pocketvlm.vision.family import RGB

Size = tuple[int, int]  # (width, height) in pixels, or (columns, rows)
MAX_RATIO = 200  # of the long edge to the short edge: transformers' `smart_resize`


def check_ratio(size: Size) -> None:
    """Raise ImageError for a picture more than MAX_RATIO times as long as wide."""
    if max(size) > MAX_RATIO * min(size):
        raise ImageError(
            f"a picture of {size[0]}x{size[1]} is more than {MAX_RATIO} times as long as wide, which this model cannot "
            "see; cut it into pieces"
        )


def grids(min_tiles: int, max_tiles: int) -> list[Size]:
    """Return every grid of `min_tiles` to `max_tiles` tiles: the fewest tiles first, then the fewest columns."""
    within_max = ((cols, rows) for cols in range(1, max_tiles + 1) for rows in range(1, max_tiles // cols + 1))
    return sorted((grid for grid in within_max if grid[0] * grid[1] >= min_tiles), key=math.prod)


def nearest(size: Size, tile: int, candidates: Iterable[Size]) -> Size | None:
    """Return the first grid that is nearest in proportions to a picture of `size`, None without candidates.

    Of two equally near grids, the later one wins if the picture has more than half of its pixels.
    """
    ratio, area = size[0] / size[1], size[0] * size[1]
    best, best_distance = None, math.inf
    for cols, rows in candidates:
        distance = abs(ratio - cols / rows)
        if distance < best_distance or (distance == best_distance and area > 0.5 * tile**2 * cols * rows):
            best, best_distance = (cols, rows), distance
    return best


def within(size: Size, max_cells: int) -> Size:
    """Return the largest grid of at most `max_cells` cells in about the proportions of `size`."""
    scale = math.sqrt(max_cells / (size[0] * size[1]))
    short, long = (max(1, math.floor(edge * scale)) for edge in sorted(size))
    long = min(long, max(1, max_cells // short))
    return (long, short) if size[0] >= size[1] else (short, long)


def cut(picture: Image.Image, tile: int) -> list[RGB]:
    """Return the tiles of a picture, `tile` x `tile` pixels each, row by row."""
    corners = ((left, top) for top in range(0, picture.height, tile) for left in range(0, picture.width, tile))
    return [np.asarray(picture.crop((left, top, left + tile, top + tile))) for left, top in corners]


def resized(picture: Image.Image, size: Size, resampling: Image.Resampling) -> Image.Image:
    """Return the picture in `size`; it is not resampled if it has that size already."""
    return picture if picture.size == size else picture.resize(size, resampling)
