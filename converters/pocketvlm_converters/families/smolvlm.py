"""SmolVLM, SmolVLM2 and Idefics3: SigLIP encoder, pixel shuffle, one linear projector, Llama decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.family import Family
from pocketvlm_converters.networks.decoder import DecoderStyle, decoder, head_width
from pocketvlm_converters.networks.rope import read_rope
from pocketvlm_converters.networks.siglip import SigLIP, siglip
from pocketvlm_converters.onnx.graph import Graph, GraphOutput
from pocketvlm_converters.onnx.patches import LANCZOS, Normalization, read_normalization, require_preprocessing
from pocketvlm_converters.weights import Part, Value, Weight

# Defaults of transformers' Idefics3VisionConfig and SmolVLMVisionConfig.
_VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}
_LLAMA = DecoderStyle("llama", rotates_neighbours=True)
_MAX_TILES = 64  # along an edge; each cell of the grid has its own token
_TOWER, _CONNECTOR = ("model.vision_model.", "vision_model."), ("model.connector.", "connector.")


class SmolVLM(Family):
    model_types: ClassVar[frozenset[str]] = frozenset({"idefics3", "smolvlm"})
    other_formats: ClassVar[Mapping[str, str]] = {
        "granite_docling": "a Granite-Docling with deepstack projectors, which is not supported; "
        "use ibm-granite/granite-docling-258M"
    }

    def language(self) -> Part:
        config = self.checkpoint.config
        text = config.present("text_config")
        text.require("model_type", "llama", "llama")
        text.require("hidden_act", "silu", "silu")
        return decoder(
            text,
            self.names(("model.text_model.", "text_model.", "model.language_model.", "language_model.")),
            self.names(("",)),
            tied=config.flag("tie_word_embeddings", False),
            style=_LLAMA,
            rope=read_rope(text, head_width(text, _LLAMA)),
        )

    def projector(self) -> Part:
        encoder, shuffle = self._encoder(), self._shuffle()
        width = self.checkpoint.config.present("text_config").integer("hidden_size", 4096)
        pixels = self._normalization()
        metadata: dict[str, Value] = {
            "clip.projector_type": "idefics3",
            **encoder.metadata(),
            "clip.vision.projection_dim": width,
            "clip.vision.projector.scale_factor": shuffle,
            "clip.vision.preproc_image_size": self._longest_edge(),
            "clip.vision.image_mean": pixels.mean,
            "clip.vision.image_std": pixels.std,
            **self._video(),
        }
        shape = (width, encoder.hidden * shuffle**2)
        connector = self.names(_CONNECTOR)
        weights = encoder.weights(self.names(_TOWER))
        weights.append(Weight("mm.model.fc.weight", connector.tensor("modality_projection.proj.weight", shape)))
        return Part("clip", metadata, tuple(weights))

    def vision_graph(self, graph: Graph) -> GraphOutput:
        encoder, shuffle = self._encoder(), self._shuffle()
        width = self.checkpoint.config.present("text_config").integer("hidden_size", 4096)
        value = encoder.graph(graph, self.names(_TOWER), self._normalization(), group=shuffle)
        side, inner = encoder.side // shuffle, encoder.hidden * shuffle**2
        # Patches are already ordered by squares, so the pixel shuffle is a reshape.
        value = graph.reshape(value, -1, side * side, inner)
        projection = self.names(_CONNECTOR).tensor("modality_projection.proj.weight", (width, inner))
        # One int8 scale for all activations after the last norm, outliers included, would lose more than all layers.
        value = graph.linear(value, projection, sensitive=True)
        return GraphOutput(value, width, tile=encoder.image, tokens=side * side)

    def _encoder(self) -> SigLIP:
        config = self.checkpoint.config.present("vision_config")
        encoder = siglip(config, **_VISION_DEFAULTS)
        if encoder.side % self._shuffle():
            raise CheckpointError(
                f"vision_config: {encoder.side} patches along an edge are not a multiple of scale_factor", config.path
            )
        return encoder

    def _normalization(self) -> Normalization:
        return read_normalization(self.checkpoint.preprocessor, (0.5,) * 3, (0.5,) * 3)

    def _shuffle(self) -> int:
        return self.checkpoint.config.integer("scale_factor", 2)

    def _video(self) -> dict[str, Value]:
        """Return what the runtime needs to know of videos, where the checkpoint has settings for them."""
        settings, tile = self.checkpoint.video_processor, self._encoder().image
        size = settings.section("video_sampling").section("video_size")
        if not size.values and settings is not self.checkpoint.preprocessor:
            size = settings.section("size")
        edge = size.integer("longest_edge", tile) if size.values else 0
        squared = settings.section("max_image_size").integer("longest_edge", 364)
        return {"pocketvlm.video_edge": edge} if edge and squared == tile else {}

    def _longest_edge(self) -> int:
        """Return the longest edge, in pixels, that a picture is resized to before it is cut into tiles."""
        preprocessor, tile = self.checkpoint.preprocessor, self._encoder().image
        require_preprocessing(preprocessor, LANCZOS, do_image_splitting=True)
        preprocessor.section("max_image_size").require("longest_edge", tile, 364)
        size = preprocessor.section("size")
        longest = size.integer("longest_edge", 4 * 364)
        if longest > _MAX_TILES * tile:
            raise size.wrong("longest_edge", f"at most {_MAX_TILES} tiles of {tile} pixels along an edge are supported")
        return longest
