"""LLaVA: CLIP or SigLIP up to one of its last layers, an MLP of two matrices, a Llama, Mistral or Qwen2 decoder."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import CONNECTOR, HEAD, LANGUAGE, TOWER_MODEL, Family, Names
from pocketvlm_converters.networks.clip import clip
from pocketvlm_converters.networks.decoder import DecoderStyle, decoder, head_width, require_full_attention
from pocketvlm_converters.networks.rope import read_rope
from pocketvlm_converters.networks.siglip import SigLIP, siglip
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph, GraphOutput
from pocketvlm_converters.onnx.patches import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    Normalization,
    read_normalization,
    require_preprocessing,
)
from pocketvlm_converters.weights import Part, Value, Weight

MISTRAL = DecoderStyle(  # here and below, defaults are those of transformers' configuration class
    "llama",
    rotates_neighbours=True,
    qkv_bias=False,
    defaults={"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
)
MISTRAL_WINDOW = 4096  # tokens; the default of sliding_window
_TEXT = {  # by the model_type of text_config
    "llama": DecoderStyle("llama", rotates_neighbours=True),
    "mistral": MISTRAL,
    "qwen2": DecoderStyle(
        "qwen2",
        qkv_bias=True,
        defaults={"intermediate_size": 22016, "vocab_size": 151936, "max_position_embeddings": 32768},
    ),
}
_SIGLIP_DEFAULTS = {  # transformers' SiglipVisionConfig
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}


class Llava(Family):
    """`text_kind`, `encoder_kind`, `feature_layer` and `selection` are the defaults of its configuration class."""

    model_types: ClassVar[frozenset[str]] = frozenset({"llava"})
    text_kind: ClassVar[str] = "llama"
    encoder_kind: ClassVar[str] = "clip_vision_model"
    feature_layer: ClassVar[int] = -2
    selection: ClassVar[str] = "default"

    def language(self) -> Part:
        text = self._text
        kind = text.text("model_type", self.text_kind)
        if kind not in _TEXT:
            raise text.wrong("model_type", f"supported language models: {', '.join(_TEXT)}")
        text.require("hidden_act", "silu", "silu")
        _check_windows(text, kind)
        style = _TEXT[kind]
        width = head_width(text, style)
        config = self.checkpoint.config
        return decoder(
            text,
            self.names(LANGUAGE),
            self.names(HEAD),
            tied=config.flag("tie_word_embeddings", False) or text.flag("tie_word_embeddings", False),
            style=style,
            rope=read_rope(text, width),
        )

    def projector(self) -> Part:
        encoder, pixels = self._encoder, self._normalization
        metadata: dict[str, Value] = {
            "clip.projector_type": "mlp",
            **encoder.metadata(),
            # Without this key libmtmd skips the last layer.
            "clip.vision.feature_layer": [encoder.layers],
            "clip.vision.projection_dim": self._width,
            "clip.vision.image_mean": pixels.mean,
            "clip.vision.image_std": pixels.std,
            **self.pictures(),
        }
        weights = encoder.weights(self._used_names)
        for number, name in ((0, "linear_1"), (2, "linear_2")):
            weight, bias = self._linear(name)
            weights += (Weight(f"mm.{number}.weight", weight), Weight(f"mm.{number}.bias", bias, exact=True))
        return Part("clip", metadata, (*weights, *self.more_weights()))

    def pictures(self) -> dict[str, Value]:
        """Return the keys that the runtime needs to prepare a picture."""
        return {"pocketvlm.image_fit": self._fit}

    def more_weights(self) -> tuple[Weight, ...]:
        """Return further weights of the mmproj file."""
        return ()

    def vision_graph(self, graph: Graph) -> GraphOutput:
        encoder = self._encoder
        value = encoder.graph(graph, self._used_names, self._normalization, group=1)
        value = graph.linear(value, *self._linear("linear_1"), sensitive=True)
        value = graph.one("Gelu", value, domain=MICROSOFT)
        value = graph.linear(value, *self._linear("linear_2"), sensitive=True)
        return GraphOutput(value, self._width, tile=encoder.image, tokens=encoder.side**2)

    @property
    def _text(self) -> Section:
        return self.checkpoint.config.present("text_config")

    @property
    def _width(self) -> int:
        return self._text.integer("hidden_size", 4096)

    def _linear(self, name: str) -> tuple[Tensor, Tensor]:
        """Return a matrix of the projector and its bias."""
        names, inner = self.names(CONNECTOR), self._encoder.hidden if name == "linear_1" else self._width
        return names.tensor(f"{name}.weight", (self._width, inner)), names.tensor(f"{name}.bias", (self._width,))

    @property
    def _used_names(self) -> Names:
        """The encoder's tensors. The reference does not use those after `vision_feature_layer` either."""
        names = self.names(TOWER_MODEL)
        config = self.checkpoint.config.present("vision_config")
        for layer in range(self._encoder.layers, config.integer("num_hidden_layers", 12)):
            names.ignore(f"encoder.layers.{layer}.")
        for unused in ("post_layernorm.", "head."):
            names.ignore(unused)
        return names

    @cached_property
    def _encoder(self) -> SigLIP:
        """The encoder with only the layers that are used."""
        model, config = self.checkpoint.config, self.checkpoint.config.present("vision_config")
        kind = config.text("model_type", self.encoder_kind)
        if kind == "clip_vision_model":  # it has a class token, which "default" drops
            encoder: SigLIP = clip(config)
            model.require("vision_feature_select_strategy", "default", self.selection)
        elif kind == "siglip_vision_model":
            encoder = siglip(config, **_SIGLIP_DEFAULTS)
            model.require("vision_feature_select_strategy", "full", self.selection)
        else:
            raise config.wrong("model_type", "supported encoders: clip_vision_model, siglip_vision_model")
        model.require("projector_hidden_act", "gelu", "gelu")
        model.require("multimodal_projector_bias", True, True)
        layer = model.integer("vision_feature_layer", self.feature_layer, least=-encoder.layers, most=encoder.layers)
        used = layer if layer >= 0 else encoder.layers + 1 + layer
        if not used:
            raise model.wrong("vision_feature_layer", "the input of the first layer is not supported")
        return replace(encoder, layers=used, normed=False)

    @cached_property
    def _fit(self) -> str:
        """How a picture is made square: stretch, crop or pad."""
        preprocessor, edge = self.checkpoint.preprocessor, self._encoder.image
        require_preprocessing(preprocessor, BICUBIC)
        size = preprocessor.section("size")
        if size.values.get("height") is not None:
            for key in ("height", "width"):
                size.require(key, edge, None)
            preprocessor.require("do_center_crop", False, False)
            preprocessor.require("do_pad", False, False)
            return "stretch"
        size.require("shortest_edge", edge, 224)
        preprocessor.require("do_center_crop", True, True)
        for key in ("height", "width"):
            preprocessor.section("crop_size").require(key, edge, 224)
        # Only LLaVA's own processors pad to a square with `do_pad`.
        name = preprocessor.text("image_processor_type", "")
        return "pad" if preprocessor.flag("do_pad", False) and name.startswith("Llava") else "crop"

    @cached_property
    def _normalization(self) -> Normalization:
        defaults = ((0.5,) * 3, (0.5,) * 3) if self._fit == "stretch" else (CLIP_MEAN, CLIP_STD)
        return read_normalization(self.checkpoint.preprocessor, *defaults)


def _check_windows(text: Section, kind: str) -> None:
    """Raise CheckpointError for a sliding window, which libllama does not have in these decoders."""
    require_full_attention(text)
    if kind == "mistral" and text.values.get("sliding_window", MISTRAL_WINDOW) is not None:
        window = text.integer("sliding_window", MISTRAL_WINDOW)
        if window < text.integer("max_position_embeddings", _TEXT[kind].defaults["max_position_embeddings"]):
            raise CheckpointError(f"text_config.sliding_window is {window}; only null is supported", text.path)
