"""Merge low-rank changes into weights (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353), some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.safetensors import FLOATS, Deferred, Tensor, as_floats

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LowRank:
    """A change of a weight whose rows are the first axis: `left` [rows, rank] times `right` [rank, width], scaled.

    Both are views of the tensors, which `read` reads. With `magnitude`, the sum has this norm in each row, or in each
    column where `by_column`.
    """

    left: Tensor
    right: Tensor
    scale: float
    magnitude: Tensor | None = None
    by_column: bool = False

    def delta(self) -> Callable[[int, int], Floats]:
        """Return a function that gives some rows of the change."""
        left, right = floats(self.left), floats(self.right)
        return lambda start, stop: (left[start:stop] @ right) * np.float32(self.scale)


def added(base: Tensor, changes: tuple[LowRank, ...]) -> Tensor:
    """Return `base` plus the changes in float32, deferred: nothing is rounded before the file is written."""

    def sums() -> Iterator[Floats]:
        deltas = [change.delta() for change in changes]
        for start, block in _rows(base):
            for delta in deltas:
                block += delta(start, start + len(block))
            yield block

    def normed(magnitude: Tensor, by_column: bool) -> Iterator[Floats]:
        norms = floats(magnitude).reshape(-1)
        columns = np.sqrt(sum(np.square(block).sum(axis=0) for block in sums())) if by_column else None
        start = 0
        for block in sums():
            if columns is not None:
                block *= norms / columns
            else:
                block *= (norms[start : start + len(block)] / np.linalg.norm(block, axis=1))[:, None]
            start += len(block)
            yield block

    def computed() -> Iterator[Floats]:
        for change in changes:
            if change.magnitude is not None:
                return normed(change.magnitude, change.by_column)
        return sums()

    return _deferred(base, computed)


def shifted(base: Tensor, shifts: tuple[tuple[Tensor, float], ...]) -> Tensor:
    """Return `base` plus scaled tensors of its shape, such as biases."""

    def computed() -> Iterator[Floats]:
        total = floats(base).copy()
        for shift, scale in shifts:
            total += floats(shift).reshape(base.shape) * np.float32(scale)
        yield total

    return _deferred(base, computed)


def with_rows(base: Tensor, indexes: tuple[int, ...], rows: Tensor) -> Tensor:
    """Return `base` with other rows at `indexes`."""

    def computed() -> Iterator[Floats]:
        given, places = floats(rows), np.array(indexes, np.intp)
        for start, block in _rows(base):
            here = (places >= start) & (places < start + len(block))
            block[places[here] - start] = given[here]
            yield block

    return _deferred(base, computed)


def floats(tensor: Tensor) -> Floats:
    """Return a small tensor in float32. Raises CheckpointError for NaN or infinity."""
    values = as_floats(tensor.values()).astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise CheckpointError(f"tensor {tensor.name} has NaN or infinite weights", tensor.path)
    return values


def _deferred(base: Tensor, computed: Callable[[], Iterator[Floats]]) -> Tensor:
    def shaped() -> Iterator[Floats]:
        for block in computed():
            yield block.reshape(-1, *base.shape[1:])

    return replace(base, data=Deferred(base.shape, FLOATS["F32"], shaped), mapped=None)


def _rows(base: Tensor) -> Iterator[tuple[int, Floats]]:
    """Yield copies of some rows in float32, [rows, width], each with the number of its first row."""
    start = 0
    for part in base.parts():
        yield start, as_floats(part).astype(np.float32).reshape(len(part), -1)
        start += len(part)
