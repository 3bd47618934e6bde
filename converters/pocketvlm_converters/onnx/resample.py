"""A square table of positions in an ONNX graph, resampled to the patches of a picture of any size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.onnx.graph import FLOAT, Graph
from pocketvlm_converters.onnx.grid import Grid


def resampled(graph: Graph, grid: Grid, table: npt.NDArray[np.float32]) -> str:
    """`table` float32 [side, side, width] -> [patches, width], in squares as `patches.cut` leaves them.

    Bilinear, with a filter as wide as a step where there are fewer patches than rows of the table: what torch calls
    `antialias`, with `align_corners` off. It parts into a product for each axis.
    """
    side, width = table.shape[0], table.shape[2]
    rows = graph.constant("position_middles", np.arange(side, dtype=np.float32) + np.float32(0.5))
    merge = graph.integers(grid.merge)
    down, across = (_filter(graph, graph.one("Mul", n, merge), rows, side) for n in (grid.rows, grid.cols))
    value = graph.constant("position_embedding", table.reshape(side, side * width))
    value = graph.reshape(graph.one("MatMul", down, value), -1, side, width)
    value = graph.one("MatMul", across, value)
    value = graph.reshape(value, grid.rows, grid.merge, grid.cols, grid.merge, width)
    value = graph.one("Transpose", value, perm=[0, 2, 1, 3, 4])
    return graph.reshape(value, -1, width)


def _filter(graph: Graph, patches: str, rows: str, side: int) -> str:
    """float32 [patches, side]: how much of each row of the table is in each patch.

    `patches` is int64 [1], `rows` float32 [side], the middles of the table's rows.
    """
    count = graph.one("Cast", patches, to=FLOAT)
    half = graph.number(0.5)
    steps = graph.one("Range", half, graph.one("Add", graph.one("Squeeze", count), half), graph.number(1.0))
    step = graph.one("Div", graph.number(float(side)), count)
    middles = graph.reshape(graph.one("Mul", steps, step), -1, 1)
    away = graph.one("Sub", middles, rows)
    reach = graph.one("Max", step, graph.number(1.0))
    weights = graph.one("Sub", graph.number(1.0), graph.one("Div", graph.one("Abs", away), reach))
    weights = graph.one("Relu", weights)
    return graph.one("Div", weights, graph.one("ReduceSum", weights, graph.integers(-1), keepdims=1))
