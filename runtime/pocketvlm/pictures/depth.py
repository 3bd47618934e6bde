"""Bring samples of any range to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.system.json_types import ByteArray

_BAND = 1 << 20  # values to scale at once


def narrow_to_eight_bits(values: npt.NDArray[Any], bits: int) -> ByteArray:
    """Scale integers of less than 32 bits. Below zero is black; the largest value without a sign is white."""
    if values.dtype.kind == "i":
        values = values.clip(0)
    if bits == 8:
        return values.astype(np.uint8, copy=False)
    top = (1 << bits) - 1
    if bits <= 16:  # a table needs no wide copy of a large picture
        table: ByteArray = np.round(np.arange(top + 1) * (255 / top)).astype(np.uint8)
        narrow: ByteArray = table[values]
        return narrow
    return np.round(values * (255 / top)).astype(np.uint8)


def wide_to_eight_bits(values: npt.NDArray[Any], *, floats: bool) -> ByteArray:
    """Scale values of shape [rows, ...] that have no fixed range.

    Integers have 16 bits unless a value is larger. Of floats, white is the smallest of 1, 255 and 65535 that no value
    exceeds, else the largest value. Negative values and what is not a number are black.
    """
    step = max(1, _BAND // max(1, values[:1].size))
    bands = [slice(first, first + step) for first in range(0, len(values), step)]
    top = max(float(values[band].max(where=np.isfinite(values[band]), initial=0)) for band in bands)
    whites = (1.0, 255.0, 65535.0) if floats else (65535.0,)
    white = next((white for white in whites if top <= white), top)
    scaled = np.empty(values.shape, np.uint8)
    for band in bands:
        known = np.nan_to_num(values[band].astype(np.float64), posinf=white).clip(0, white)
        scaled[band] = np.round(known * (255 / white))
    return scaled
