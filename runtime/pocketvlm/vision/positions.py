"""The positions of embeddings in the prompt."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pocketvlm.vision.family import MosaicSpan, TileSpan
from pocketvlm.vision.video import VideoPlan


def span_positions(span: TileSpan | MosaicSpan, *, mrope: bool) -> tuple[npt.NDArray[np.int32], int]:
    """Return the positions of a span's tokens, int32 [1 or 4, tokens] from 0, and the position of the text after it.

    In M-RoPE (arXiv 2409.12191), all tokens of a tile have the same time, height and width count its rows and columns,
    and text continues after the longer of the two.
    """
    if not mrope or isinstance(span, MosaicSpan):
        return np.tile(np.arange(span.tokens, dtype=np.int32), (4 if mrope else 1, 1)), span.tokens
    rows, cols = span.grid
    y, x = np.divmod(np.arange(rows * cols, dtype=np.int32), cols)
    zeros = np.zeros_like(y)
    return np.stack([zeros, y, x, zeros]).astype(np.int32), max(rows, cols)


def tile_positions(plan: VideoPlan, span: TileSpan) -> tuple[npt.NDArray[np.int32], int]:
    """Return the M-RoPE positions of a tile in a plan with `steps`, int32 [4, tokens], and those that it takes.

    They are relative to the position in time of the tile, where its span begins. Text after the last tile continues
    after the largest position of any axis (arXiv 2409.12191).
    """
    rows, cols = span.grid
    step = plan.steps[span.index]
    y, x = np.divmod(np.arange(rows * cols, dtype=np.int32), cols)
    zeros = np.zeros_like(y)
    following = plan.steps[span.index + 1 : span.index + 2]
    end = following[0] if following else max(step, rows - 1, cols - 1) + 1
    return np.stack([zeros, y - step, x - step, zeros]).astype(np.int32), end - step
