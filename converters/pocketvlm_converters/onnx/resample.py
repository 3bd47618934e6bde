"""A square table of positions in an ONNX graph, resampled to the patches of a picture of any size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.onnx.graph import FLOAT, Graph
from pocketvlm_converters.onnx.grid import Grid


def resampled(graph: Graph, grid: Grid, table: npt.NDArray[np.float32], *, corners: bool = False) -> str:
    """`table` float32 [side, side, width] -> [patches, width], in squares as `patches.cut` leaves them.

    Bilinear. With `corners`, those of the table are those of the picture: what torch calls `align_corners`. Without,
    patches and rows of the table divide the same edge, and where there are fewer patches the filter is as wide as their
    step: torch's `antialias`. Both part into a product for each axis.
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
    """float32 [patches, side]: how much of each row of the table is in each patch.

    `patches` is int64 [1]; `rows` float32 [side] are the places of the table's rows, from `first` on: 0 with corners
    that meet, the middle of a row without.
    """
    count, start, one = graph.one("Cast", patches, to=FLOAT), graph.number(first), graph.number(1.0)
    if first:
        step = graph.one("Div", graph.number(float(side)), count)
        reach = graph.one("Max", step, one)
    else:
        between = graph.one("Max", graph.one("Sub", count, one), one)
        step, reach = graph.one("Div", graph.number(side - 1.0), between), one
    steps = graph.one("Range", start, graph.one("Add", graph.one("Squeeze", count), start), one)
    away = graph.one("Sub", graph.reshape(graph.one("Mul", steps, step), -1, 1), rows)
    weights = graph.one("Relu", graph.one("Sub", one, graph.one("Div", graph.one("Abs", away), reach)))
    return graph.one("Div", weights, graph.one("ReduceSum", weights, graph.integers(-1), keepdims=1))
