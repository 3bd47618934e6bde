"""A picture as the model sees it: the pixels of its tiles, put together again, for people to look at."""

from __future__ import annotations

import math

import numpy as np

from pocketvlm.vision.family import RGB, Family, MosaicSpan, PicturePlan


def tile_grid(plan: PicturePlan) -> tuple[int, int]:
    """Return how many (columns, rows) of tiles cover the picture. One more tile may show all of it once more.

    Tiles are square wherever there are several. For both numbers of tiles to have a square root, they would have to be
    0 and 1, so there is one answer.
    """
    width, height = plan.canvas or plan.used
    for count in (plan.tiles, plan.tiles - 1):
        edge = math.isqrt(width * height // count) if count > 0 else 0
        if edge and edge**2 * count == width * height and width % edge == height % edge == 0:
            return width // edge, height // edge
    return 1, 1


def seen_pixels(family: Family, plan: PicturePlan, image: RGB) -> RGB:
    """Return what the model sees of `image`, uint8 [height, width, 3], in the size of the plan's canvas or last resize.

    The tile that shows all of the picture once more is left out.
    """
    tiles = family.tiles(image, plan)
    columns, rows = tile_grid(plan)
    if columns * rows == 1:
        return tiles[-1]
    first = len(tiles) - columns * rows if any(isinstance(piece, MosaicSpan) for piece in plan.layout) else 0
    bands = [tiles[first + row * columns : first + (row + 1) * columns] for row in range(rows)]
    return np.vstack([np.hstack(band) for band in bands])
