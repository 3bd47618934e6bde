"""Resample a square table of positions to the patches of a picture of any size, in an ONNX graph."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.onnx.graph import FLOAT, Graph
from pocketvlm_converters.onnx.grid import Grid


def resample_positions(graph: Graph, grid: Grid, table: npt.NDArray[np.float32], *, corners: bool = False) -> str:
    """Resample `table` float32 [side, side, width] bilinearly to [patches, width], in the order of `cut_patches`.

    With `corners`, the corners of table and picture coincide, as with torch's `align_corners`. Without, patches and
    rows of the table divide the same edge. If there are fewer patches than rows, the filter is then as wide as a patch,
    as with torch's `antialias`. Both filters are separable: one matrix product for each axis.
    """
    side, width = table.shape[0], table.shape[2]
    merge = graph.integers(grid.merge)
    first = 0.0 if corners else 0.5
    rows = graph.constant("position_rows", np.arange(side, dtype=np.float32) + np.float32(first))
    down, across = (_filter(graph, graph.one("Mul", n, merge), rows, side, first) for n in (grid.rows, grid.cols))
    value = graph.constant("position_embedding", table.reshape(side, side * width))
    value = graph.reshape(graph.one("MatMul", down, value), -1, side, width)
    value = graph.one("MatMul", across, value)
    value = graph.reshape(value, grid.rows, grid.merge, grid.cols, grid.merge, width)
    value = graph.one("Transpose", value, perm=[0, 2, 1, 3, 4])
    return graph.reshape(value, -1, width)


def _filter(graph: Graph, patches: str, rows: str, side: int, first: float) -> str:
    """Return the weight of each row of the table in each patch, float32 [patches, side].

    `patches` is int64 [1]. `rows` float32 [side] are the positions of the table's rows, starting at `first`: 0 if the
    corners coincide, else 0.5, the middle of a row.
    """
    count, start, one = graph.one("Cast", patches, to=FLOAT), graph.number(first), graph.number(1.0)
    if first:
        step = graph.one("Div", graph.number(float(side)), count)
        reach = graph.one("Max", step, one)
    else:
        between = graph.one("Max", graph.one("Sub", count, one), one)
        step, reach = graph.one("Div", graph.number(side - 1.0), between), one
    steps = graph.one("Range", start, graph.one("Add", graph.one("Squeeze", count), start), one)
    distance = graph.one("Sub", graph.reshape(graph.one("Mul", steps, step), -1, 1), rows)
    weights = graph.one("Relu", graph.one("Sub", one, graph.one("Div", graph.one("Abs", distance), reach)))
    return graph.one("Div", weights, graph.one("ReduceSum", weights, graph.integers(-1), keepdims=1))
