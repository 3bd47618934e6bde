"""LLaVA-NeXT (LLaVA 1.6): LLaVA with pictures in tiles, and an embedding after each row of patches."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.families.llava import Llava
from pocketvlm_converters.onnx.graph import INPUT, Graph, GraphOutput
from pocketvlm_converters.onnx.patches import BICUBIC, require_preprocessing
from pocketvlm_converters.weights import Value, Weight

# transformers' default: height and width in pixels.
_DEFAULT_GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_MAX_TILES = 64  # along an edge; bounds what a damaged file can ask for


class LlavaNext(Llava):
    """`default_grids` are those of the configuration class and of the image processor."""

    model_types: ClassVar[frozenset[str]] = frozenset({"llava_next"})
    default_grids: ClassVar[list[list[int]]] = _DEFAULT_GRIDS

    def pictures(self) -> dict[str, Value]:
        return {
            "clip.vision.mm_patch_merge_type": "spatial_unpad",
            # libmtmd expects the width first.
            "clip.vision.image_grid_pinpoints": [edge for height, width in self._grids for edge in (width, height)],
        }

    def more_weights(self) -> tuple[Weight, ...]:
        return (Weight("v.image_newline", self._newline, exact=True),)

    def vision_graph(self, graph: Graph) -> GraphOutput:
        """Add the encoder; the embedding of a row's end follows the embeddings of each tile."""
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
        """The grids, (height, width) in pixels. The model crops padding by config.json's, so both files must agree."""
        config, preprocessor, edge = self.checkpoint.config, self.checkpoint.preprocessor, self._encoder.image
        config.require("use_image_newline_parameter", True, True)
        grids = _read_grids(config, self.default_grids)
        if _read_grids(preprocessor, self.default_grids) != grids:
            raise preprocessor.wrong("image_grid_pinpoints", "config.json has other grids")
        if any(side % edge or not 0 < side <= edge * _MAX_TILES for grid in grids for side in grid):
            raise config.wrong(
                "image_grid_pinpoints",
                f"only multiples of the tile, {edge} pixels, are supported, at most {_MAX_TILES} tiles along an edge",
            )
        return grids

    @cached_property
    def _fit(self) -> str:
        """How a picture is made square. A tile already is, so the value has no effect."""
        preprocessor, edge = self.checkpoint.preprocessor, self._encoder.image
        require_preprocessing(preprocessor, BICUBIC)
        size = preprocessor.section("size")
        if size.values.get("height") is None:
            size.require("shortest_edge", edge, 224)
        else:
            for key in ("height", "width"):
                size.require(key, edge, None)
        for key in ("height", "width"):
            preprocessor.section("crop_size").require(key, edge, 224)
        return "crop"


def _read_grids(section: Section, default: list[list[int]]) -> list[tuple[int, int]]:
    grids = section.values.get("image_grid_pinpoints") or default
    are_pairs = isinstance(grids, list) and all(isinstance(grid, list) and len(grid) == 2 for grid in grids)
    if not are_pairs or any(type(edge) is not int for grid in grids for edge in grid):
        raise section.wrong("image_grid_pinpoints", "it must be a list of pairs of whole numbers")
    return [(height, width) for height, width in grids]
