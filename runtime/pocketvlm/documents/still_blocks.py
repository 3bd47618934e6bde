"""Separate what moves in a video from what a codec changes: blocks that look the same keep their pixels.

A lossy codec codes a still picture anew every few seconds, with other errors each time. Without these errors, tiles in
which nothing moves are equal to those of the frame before, and an encoder that has seen them is not asked again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RGB = npt.NDArray[np.uint8]  # [height, width, 3]

_EDGE = 8  # pixels: the blocks that most codecs transform
# Differences from 0 to 255, of the channel that differs most. A block moves beyond a mean, or beyond that of one pixel.
# Errors are those of most blocks: with H.264 of usual quality, still blocks stayed below three times their median.
_MEAN, _SINGLE = 6.0, 80
_ERRORS, _MOST_ERRORS = 3.0, 16.0
_ALL = 0.5  # share of moving blocks beyond which nothing is still


class StillBlocks:
    """The picture of a video as it changes, from one frame to the next."""

    def __init__(self) -> None:
        self.times: list[float] = []  # of the frames that changed it
        self.picture: RGB | None = None

    def follows(self, times: Sequence[float]) -> bool:
        """Return whether the frames so far are the first of those at `times`."""
        return self.times == list(times[: len(self.times)])

    def show(self, frame: RGB, time: float) -> bool:
        """Take over what moves in a frame. Return False where nothing does; the frame is then not counted."""
        if self.picture is None or self.picture.shape != frame.shape:
            self.picture = frame.copy()
        else:
            moved = _moved(self.picture, frame)
            if not moved.any():
                return False
            np.copyto(self.picture, frame, where=moved[..., None])
        self.times.append(time)
        return True


def _moved(picture: RGB, frame: RGB) -> npt.NDArray[np.bool_]:
    """Return which pixels are in blocks that differ, [height, width]."""
    height, width, _ = picture.shape
    differences = np.abs(picture.astype(np.int16) - frame).max(axis=2)
    rows, cols = -(-height // _EDGE), -(-width // _EDGE)
    padded = np.pad(differences, ((0, rows * _EDGE - height), (0, cols * _EDGE - width)), "edge")
    blocks = padded.reshape(rows, _EDGE, cols, _EDGE)
    means = blocks.mean(axis=(1, 3))
    errors = min(_ERRORS * float(np.median(means)), _MOST_ERRORS)
    moved = (means > max(_MEAN, errors)) | (blocks.max(axis=(1, 3)) > _SINGLE)
    if moved.mean() > _ALL:
        moved[:] = True
    pixels: npt.NDArray[np.bool_] = moved.repeat(_EDGE, axis=0).repeat(_EDGE, axis=1)[:height, :width]
    return pixels
