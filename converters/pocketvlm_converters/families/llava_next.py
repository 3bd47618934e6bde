"""LLaVA-NeXT (LLaVA 1.6): as LLaVA, with pictures in tiles and an embedding behind each row of their grid."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.families.llava import Llava
from pocketvlm_converters.onnx.graph import INPUT, Graph, GraphOutput
from pocketvlm_converters.onnx.patches import BICUBIC, require_preprocessing
from pocketvlm_converters.weights import Value, Weight

_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # transformers' default: height, width
_MOST_TILES = 64  # along an edge


class LlavaNext(Llava):
    model_types: ClassVar[frozenset[str]] = frozenset({"llava_next"})

    def pictures(self) -> dict[str, Value]:
        return {
            "clip.vision.mm_patch_merge_type": "spatial_unpad",
            # Width first, as libmtmd reads it.
            "clip.vision.image_grid_pinpoints": [edge for height, width in self._grids for edge in (width, height)],
        }

    def more_weights(self) -> tuple[Weight, ...]:
        return (Weight("v.image_newline", self._newline, exact=True),)

    def vision_graph(self, graph: Graph) -> GraphOutput:
        """A tile's embeddings, and behind them that of a row's end."""
        output = super().vision_graph(graph)
        assert output.tokens is not None
        tiles = graph.one("Shape", INPUT, start=0, end=1)
        shape = graph.extents(tiles, 1, output.width)
        newline = graph.one("Expand", graph.vector(self._newline), shape)
        value = graph.one("Concat", output.value, newline, axis=1)
        return GraphOutput(value, output.width, tile=output.tile, tokens=output.tokens + 1)

    @property
    def _newline(self) -> Tensor:
        return self.names(("image_newline", "model.image_newline")).tensor("", (self._width,))

    @cached_property
    def _grids(self) -> list[tuple[int, int]]:
        """(height, width) in pixels. The model cuts padding off by its configuration, whatever the processor did."""
        config, preprocessor, edge = self.checkpoint.config, self.checkpoint.preprocessor, self._encoder.image
        config.require("use_image_newline_parameter", True, True)
        found = _read_grids(config)
        if _read_grids(preprocessor) != found:
            raise preprocessor.wrong("image_grid_pinpoints", "the model's configuration has others")
        if any(side % edge or not 0 < side <= edge * _MOST_TILES for grid in found for side in grid):
            raise config.wrong("image_grid_pinpoints", f"only multiples of {edge}, the tile, are supported")
        return found

    @cached_property
    def _fit(self) -> str:
        """Each tile has its size already."""
        found, edge = self.checkpoint.preprocessor, self._encoder.image
        require_preprocessing(found, BICUBIC)
        size = found.section("size")
        if size.values.get("height") is None:
            size.require("shortest_edge", edge, 224)
        else:
            for key in ("height", "width"):
                size.require(key, edge, None)
        for key in ("height", "width"):
            found.section("crop_size").require(key, edge, 224)
        return "crop"


def _read_grids(section: Section) -> list[tuple[int, int]]:
    told = section.values.get("image_grid_pinpoints") or _GRIDS
    pairs = isinstance(told, list) and all(isinstance(grid, list) and len(grid) == 2 for grid in told)
    if not pairs or any(type(edge) is not int for grid in told for edge in grid):
        raise section.wrong("image_grid_pinpoints", "it must be pairs of numbers")
    return [(height, width) for height, width in told]
