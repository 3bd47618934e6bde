"""Resample a square table of positions to the patches of a picture of any size, in an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.onnx.graph import FLOAT, Graph
from pocketvlm_converters.onnx.grid import Grid

_REACH = 2  # rows of the table to which a cubic filter reaches on either side
_CUBIC = -0.75  # torch's parameter of it


def resample_positions(
    graph: Graph, grid: Grid, table: npt.NDArray[np.float32], *, corners: bool = False, wider: bool = True
) -> str:
    """Resample `table` float32 [side, side, width] bilinearly to [patches, width], in the order of `cut_patches`.

    With `corners`, the corners of table and picture coincide, as with torch's `align_corners`. Without, patches and
    rows of the table divide the same edge. If there are fewer patches than rows, the filter is then as wide as a patch,
    as with torch's `antialias`, unless `wider` is False.
    """
    side, first = table.shape[0], 0.0 if corners else 0.5
    return _resample(graph, grid, table, first, lambda count, rows: _linear(graph, count, rows, side, first, wider))


def resample_positions_cubically(graph: Graph, grid: Grid, table: npt.NDArray[np.float32]) -> str:
    """Resample as `resample_positions` does without corners, with torch's bicubic filter, which is never wider.

    Beyond the edges, the outer rows of the table are repeated.
    """
    side = table.shape[0]
    table = np.pad(table, ((_REACH, _REACH), (_REACH, _REACH), (0, 0)), mode="edge")
    return _resample(graph, grid, table, 0.5 - _REACH, lambda count, rows: _cubic(graph, count, rows, side))


def _resample(
    graph: Graph, grid: Grid, table: npt.NDArray[np.float32], first: float, weights: Callable[[str, str], str]
) -> str:
    """Apply a separable filter, one matrix product for each axis.

    The rows of the table are at `first`, `first` + 1, ... `weights(patches, rows)` returns the filter, float32
    [patches, rows].
    """
    rows, cols, width = table.shape
    merge = graph.integers(grid.merge)
    places = graph.constant("position_rows", np.arange(rows, dtype=np.float32) + np.float32(first))
    down, across = (weights(graph.one("Mul", n, merge), places) for n in (grid.rows, grid.cols))
    value = graph.constant("position_embedding", table.reshape(rows, cols * width))
    value = graph.reshape(graph.one("MatMul", down, value), -1, cols, width)
    value = graph.one("MatMul", across, value)
    value = graph.reshape(value, grid.rows, grid.merge, grid.cols, grid.merge, width)
    value = graph.one("Transpose", value, perm=[0, 2, 1, 3, 4])
    return graph.reshape(value, -1, width)


def _linear(graph: Graph, patches: str, rows: str, side: int, first: float, wider: bool) -> str:
    """Return the weight of each row of the table in each patch, float32 [patches, side].

    `patches` is int64 [1]. `rows` float32 [side] are the positions of the table's rows, starting at `first`: 0 if the
    corners coincide, else 0.5, the middle of a row.
    """
    count, one = graph.one("Cast", patches, to=FLOAT), graph.number(1.0)
    if first:
        step = graph.one("Div", graph.number(float(side)), count)
        reach = graph.one("Max", step, one) if wider else one
    else:
        between = graph.one("Max", graph.one("Sub", count, one), one)
        step, reach = graph.one("Div", graph.number(side - 1.0), between), one
    distance = graph.one("Div", _distance(graph, count, step, rows, first), reach)
    weights = graph.one("Relu", graph.one("Sub", one, distance))
    return graph.one("Div", weights, graph.one("ReduceSum", weights, graph.integers(-1), keepdims=1))


def _cubic(graph: Graph, patches: str, rows: str, side: int) -> str:
    """Return the weights as `_linear` does; the rows begin `_REACH` before those of the table."""

    def polynomial(value: str, *factors: float) -> str:
        total = graph.number(factors[0])
        for factor in factors[1:]:
            total = graph.one("Add", graph.one("Mul", total, value), graph.number(factor))
        return total

    count, a = graph.one("Cast", patches, to=FLOAT), _CUBIC
    step = graph.one("Div", graph.number(float(side)), count)
    distance = _distance(graph, count, step, rows, 0.5)
    near = polynomial(distance, a + 2, -(a + 3), 0.0, 1.0)
    far = polynomial(distance, a, -5 * a, 8 * a, -4 * a)
    is_far, is_near = (graph.one("Less", distance, graph.number(limit)) for limit in (2.0, 1.0))
    return graph.one("Where", is_near, near, graph.one("Where", is_far, far, graph.number(0.0)))


def _distance(graph: Graph, count: str, step: str, rows: str, first: float) -> str:
    """Return how far each patch is from each row, float32 [patches, rows]. Patches are at (`first` + n) * `step`."""
    start = graph.number(first)
    steps = graph.one("Range", start, graph.one("Add", graph.one("Squeeze", count), start), graph.number(1.0))
    return graph.one("Abs", graph.one("Sub", graph.reshape(graph.one("Mul", steps, step), -1, 1), rows))
