"""LFM2-VL and LFM2.5-VL: SigLIP 2 for pictures of any size, pixel unshuffle, an MLP of two matrices, LFM2 decoder."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.family import CONNECTOR, Family
from pocketvlm_converters.networks.lfm2_decoder import lfm2_decoder
from pocketvlm_converters.networks.siglip2_naflex import SigLIP2NaFlex, siglip2_naflex
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph, GraphOutput
from pocketvlm_converters.onnx.patches import BILINEAR, Normalization, read_normalization, require_preprocessing
from pocketvlm_converters.weights import Part, Value, Weight

_PROCESSORS = ("Lfm2VlImageProcessor", "Lfm2VlImageProcessorFast")
_MAX_TILES = 10  # along an edge; each cell of the grid has its own token
_EPSILON = 1e-5  # of the projector's norm; configurations have no key for it
_TOWER = ("model.vision_tower.vision_model.", "vision_tower.vision_model.", "model.vision_tower.", "vision_tower.")


class LFM2VL(Family):
    model_types: ClassVar[frozenset[str]] = frozenset({"lfm2_vl", "lfm2-vl"})  # the latter before transformers 5

    def language(self) -> Part:
        config, text = self.checkpoint.config, self.checkpoint.config.present("text_config")
        text.require("model_type", "lfm2", "lfm2")
        tied = config.flag("tie_embedding", config.flag("tie_word_embeddings", True))
        names = self.names(("model.language_model.", "language_model."))
        return lfm2_decoder(text, names, self.names(("",)), tied, "lfm2")

    def projector(self) -> Part:
        encoder, pixels = self._encoder, self._normalization()
        weights = encoder.weights(self.names(_TOWER))
        self.names(_TOWER).ignore("head.")  # summarises a picture in one vector; not used
        first, norm, second = self._connector
        for gguf, tensor in zip(("mm.input_norm.weight", "mm.input_norm.bias"), norm, strict=False):
            weights.append(Weight(gguf, tensor, exact=True))
        for gguf, (matrix, bias) in (("mm.1", first), ("mm.2", second)):
            weights.append(Weight(f"{gguf}.weight", matrix))
            weights.append(Weight(f"{gguf}.bias", bias, exact=True))
        metadata: dict[str, Value] = {
            "clip.projector_type": "lfm2",
            **encoder.metadata(),
            "clip.vision.projection_dim": self._width,
            "clip.vision.projector.scale_factor": self._factor,
            "clip.vision.image_mean": pixels.mean,
            "clip.vision.image_std": pixels.std,
            **self._sizes(),
        }
        return Part("clip", metadata, tuple(weights))

    def vision_graph(self, graph: Graph) -> GraphOutput:
        encoder = self._encoder
        value = encoder.graph(graph, self.names(_TOWER), self._normalization(), group=self._factor)
        # Patches are already ordered by squares, so the pixel unshuffle is a reshape.
        value = graph.reshape(value, 0, -1, encoder.hidden * self._factor**2)
        first, norm, second = self._connector
        if norm:
            weights = (graph.vector(tensor) for tensor in norm)
            value = graph.one("LayerNormalization", value, *weights, epsilon=_EPSILON)
        value = graph.linear(value, *first, sensitive=True)
        value = graph.one("Gelu", value, domain=MICROSOFT)
        return GraphOutput(graph.linear(value, *second, sensitive=True), self._width)

    @cached_property
    def _encoder(self) -> SigLIP2NaFlex:
        self.checkpoint.config.require("vision_feature_layer", -1, -1)  # transformers 5 ignores the key
        return siglip2_naflex(self.checkpoint.config.present("vision_config"))

    @cached_property
    def _connector(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """(matrix, bias) of the first layer, those of the norm before it or (), (matrix, bias) of the second."""
        config, names = self.checkpoint.config, self.names(CONNECTOR)
        config.require("projector_hidden_act", "gelu", "gelu")
        config.require("projector_bias", True, True)
        inner, merged = config.integer("projector_hidden_size", 2560), self._encoder.hidden * self._factor**2

        def layer(name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
            return names.tensor(f"{name}.weight", shape), names.tensor(f"{name}.bias", shape[:1])

        norm: tuple[Tensor, ...] = ()
        if config.flag("projector_use_layernorm", True):
            norm = (names.tensor("layer_norm.weight", (merged,)), names.tensor("layer_norm.bias", (merged,)))
        return layer("linear_1", (inner, merged)), norm, layer("linear_2", (self._width, inner))

    @property
    def _factor(self) -> int:
        """The edge, in patches, of the square that becomes one embedding."""
        return self.checkpoint.config.integer("downsample_factor", 2, most=16)

    @property
    def _width(self) -> int:
        return self.checkpoint.config.present("text_config").integer("hidden_size", 2560)

    def _normalization(self) -> Normalization:
        return read_normalization(self.checkpoint.preprocessor, (0.5,) * 3, (0.5,) * 3)

    def _sizes(self) -> dict[str, Value]:
        """Return the keys for resizing and cutting pictures. llama.cpp's own files have none of them."""
        preprocessor, encoder = self.checkpoint.preprocessor, self._encoder
        kind = preprocessor.text("image_processor_type", _PROCESSORS[0])
        if kind not in _PROCESSORS:
            raise preprocessor.wrong(
                "image_processor_type",
                "an early version with its own code is not supported; download the current files from the hub",
            )
        # The processor resizes pictures even if `do_resize` is false.
        require_preprocessing(preprocessor, BILINEAR, do_resize=None, do_pad=True, max_pixels_tolerance=2.0)
        for key, value, default in (
            ("encoder_patch_size", encoder.patch, 16),
            ("downsample_factor", self._factor, 2),
        ):
            preprocessor.require(key, value, default)
        self.checkpoint.json("processor_config.json", optional=True).require("use_image_special_tokens", True, True)
        cell = encoder.patch * self._factor
        tile = preprocessor.integer("tile_size", 512)
        if tile % cell:
            raise preprocessor.wrong(
                "tile_size", f"it must be a multiple of {cell}, the pixels along the edge of one embedding"
            )
        splits = preprocessor.flag("do_image_splitting", True)
        fewest = preprocessor.integer("min_tiles", 2, least=2) if splits else 1
        most = preprocessor.integer("max_tiles", 10, most=_MAX_TILES) if splits else 1
        least_tokens = preprocessor.integer("min_image_tokens", 64)
        most_tokens = preprocessor.integer("max_image_tokens", 256)
        if fewest > most or least_tokens > most_tokens:
            raise CheckpointError(
                f"a minimum is above its maximum: {fewest} to {most} tiles, {least_tokens} to {most_tokens} tokens",
                preprocessor.path,
            )
        return {
            "clip.vision.preproc_image_size": tile,
            "clip.vision.preproc_min_tiles": fewest,
            "clip.vision.preproc_max_tiles": most,
            "clip.vision.image_min_pixels": least_tokens * cell**2,
            "clip.vision.image_max_pixels": most_tokens * cell**2,
            "pocketvlm.overview": preprocessor.flag("use_thumbnail", True),
        }
