"""A picture of any size in an ONNX graph: rotary angles and attention windows of its patches, computed from its shape.

Patches are ordered by squares of `merge` x `merge`, as `cut_patches` leaves them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pocketvlm_converters.onnx.graph import FLOAT, INPUT, Graph

_INT32 = 6  # TensorProto.INT32


@dataclass(frozen=True)
class Windows:
    """Windows of `side` x `side` squares. Those that cross an edge are padded with squares from inside.

    - `index`, int64 [windows * side * side]: the square at each place.
    - `places`, int64 [squares]: the place of each square.
    - `real`, int32 [tiles * windows, patches of a window]: the key padding mask of attention, 0 at padding.
    """

    side: int
    index: str
    places: str
    real: str


class Grid:
    """The grid of squares of a picture. `rows`, `cols` and `tiles` name int64 [1] values."""

    def __init__(self, graph: Graph, patch: int, merge: int) -> None:
        self._graph = graph
        self.merge = merge
        self.tiles = graph.one("Shape", INPUT, start=0, end=1)
        self.rows, self.cols = (
            graph.one("Div", graph.one("Shape", INPUT, start=axis, end=axis + 1), graph.integers(patch * merge))
            for axis in (1, 2)
        )

    def angles(self, width: int, theta: float = 10000.0, *, alternating: bool = False) -> tuple[str, str]:
        """Return cosines and sines of 2-D rotary positions, float32 [patches, width / 2], for heads of `width`.

        The first half of the values rotates with the row, the second with the column. Both use the same frequencies;
        with `alternating`, they take turns in a list of twice as many.
        """
        graph, merge = self._graph, self.merge
        count = width // 4

        def frequencies(name: str, first: float) -> str:
            return graph.constant(name, (theta ** (-(np.arange(count) + first) / count)).astype(np.float32))

        down = frequencies("rotary_steps", 0.0)
        across = frequencies("rotary_steps_across", 0.5) if alternating else down
        within = graph.integers(*range(merge))
        shape = graph.extents(self.rows, self.cols, merge, merge, count)
        parts = []
        for squares, first, inside, steps in (
            (self.rows, (-1, 1, 1, 1, 1), (merge, 1, 1), down),
            (self.cols, (-1, 1, 1, 1), (merge, 1), across),
        ):
            place = graph.one("Mul", graph.reshape(self._count(squares), *first), graph.integers(merge))
            place = graph.one("Add", place, graph.reshape(within, *inside))
            angle = graph.one("Mul", graph.one("Cast", place, to=FLOAT), steps)
            parts.append(graph.one("Expand", angle, shape))
        angles = graph.reshape(graph.one("Concat", *parts, axis=-1), -1, 2 * count)
        return graph.one("Cos", angles), graph.one("Sin", angles)

    def windows(self, side: int) -> Windows:
        """Return windows of `side` x `side` squares."""
        graph = self._graph
        one, edge, area = graph.integers(1), graph.integers(side), graph.integers(side * side)
        down, across = (
            graph.one("Div", graph.one("Add", squares, graph.integers(side - 1)), edge)
            for squares in (self.rows, self.cols)
        )
        within = graph.integers(*range(side))

        def spread(count: str, outer: tuple[int, ...], inner: tuple[int, ...]) -> str:
            starts = graph.reshape(graph.one("Mul", self._count(count), edge), *outer)
            return graph.one("Add", starts, graph.reshape(within, *inner))

        row = spread(down, (-1, 1, 1, 1), (side, 1))  # [down, 1, side, 1]
        col = spread(across, (-1, 1, 1), (side,))  # [across, 1, side]
        real = graph.one("And", graph.one("Less", row, self.rows), graph.one("Less", col, self.cols))
        row, col = (
            graph.one("Min", place, graph.one("Sub", squares, one))
            for place, squares in ((row, self.rows), (col, self.cols))
        )
        index = graph.reshape(graph.one("Add", graph.one("Mul", row, self.cols), col), -1)

        row, col = graph.reshape(self._count(self.rows), -1, 1), self._count(self.cols)
        window = graph.one("Mul", graph.one("Div", row, edge), across)
        window = graph.one("Add", window, graph.one("Div", col, edge))
        place = graph.one("Add", graph.one("Mul", graph.one("Mod", row, edge), edge), graph.one("Mod", col, edge))
        places = graph.reshape(graph.one("Add", graph.one("Mul", window, area), place), -1)

        real = graph.reshape(graph.one("Cast", real, to=_INT32), -1, side * side, 1)
        mask_shape = graph.extents(self.tiles, graph.one("Mul", down, across), side * side, self.merge**2)
        real = graph.reshape(graph.one("Expand", real, mask_shape), -1, side * side * self.merge**2)
        return Windows(side, index, places, real)

    def split(self, value: str, windows: Windows, width: int) -> str:
        """Split a picture into windows: [tiles, patches, width] -> [tiles * windows, patches of a window, width]."""
        graph, square = self._graph, self.merge**2
        value = graph.one("Gather", graph.reshape(value, 0, -1, square * width), windows.index, axis=1)
        return graph.reshape(value, -1, windows.side**2 * square, width)

    def join(self, value: str, windows: Windows, width: int) -> str:
        """Undo `split`, and drop the padding."""
        graph, square = self._graph, self.merge**2
        value = graph.reshape(value, self.tiles, -1, square * width)
        return graph.reshape(graph.one("Gather", value, windows.places, axis=1), 0, -1, width)

    def _count(self, limit: str) -> str:
        """Return int64 [limit]: 0, 1, 2, ..."""
        graph = self._graph
        return graph.reshape(graph.one("NonZero", graph.one("Expand", graph.integers(1), limit)), -1)
