"""SigLIP for pictures of any size: its table of positions is resampled to the patches of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.siglip import SigLIP
from pocketvlm_converters.onnx.graph import Graph
from pocketvlm_converters.onnx.grid import Grid
from pocketvlm_converters.onnx.patches import Normalization, cut_patches
from pocketvlm_converters.onnx.resample import resample_positions


@dataclass(frozen=True)
class ResampledSigLIP(SigLIP):
    """Sizes of the encoder. `side` is the edge of the position table; `wider` is that of `resample_positions`."""

    wider: ClassVar[bool] = True

    def embed(self, graph: Graph, names: Names, pixels: Normalization, group: int) -> str:
        """Return the input of the first layer, [tiles, patches, hidden].

        A tile's height and width must be multiples of patch * group.
        """
        grid = Grid(graph, self.patch, group)
        value = cut_patches(graph, self.patch, group, grid.rows, grid.cols)
        matrix, offset = self.patch_matrix(names, pixels)
        value = graph.one("MatMul", value, graph.constant("patch_embedding", matrix))
        # A resampled position is a weighted mean, so a constant added to the table is added to each patch.
        table = (self.positions(names) + offset).astype(matrix.dtype).reshape(self.side, self.side, self.hidden)
        return graph.one("Add", value, resample_positions(graph, grid, table, wider=self.wider))
