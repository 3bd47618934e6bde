"""Gemma 3: SigLIP encoder, average pooling, one projection, Gemma decoder with a sliding window on most layers."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import CONNECTOR, HEAD, LANGUAGE, TOWER_MODEL, Family
from pocketvlm_converters.networks.decoder import MAX_LAYERS, DecoderStyle, decoder, head_width
from pocketvlm_converters.networks.rope import Rope, read_rope
from pocketvlm_converters.networks.siglip import SigLIP, siglip
from pocketvlm_converters.onnx import layers
from pocketvlm_converters.onnx.graph import Graph, GraphOutput
from pocketvlm_converters.onnx.patches import BILINEAR, Normalization, read_normalization, require_preprocessing
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Part, Value, Weight

_GEMMA = DecoderStyle(
    "gemma3",
    qkv_bias=False,
    norms={
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    head_norms={"attn_q_norm": "q_norm", "attn_k_norm": "k_norm"},
    norm_offset=1.0,
    defaults={  # transformers' Gemma3TextConfig; files on the hub leave out most values
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
)
_VISION_DEFAULTS = {  # transformers' SiglipVisionConfig
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
_WINDOW, _FULL = "sliding_attention", "full_attention"
_PATTERN = 6  # every sixth layer has no window by default, in transformers and in libllama
_LAYERS_27B = 62  # libllama recognises the 27B model by it, the only one that does not scale queries by the head width


class Gemma3(Family):
    model_types: ClassVar[frozenset[str]] = frozenset({"gemma3"})

    def language(self) -> Part:
        config, text = self.checkpoint.config, self.checkpoint.config.present("text_config")
        text.require("model_type", "gemma3_text", "gemma3_text")
        text.require("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
        for key in ("attention_bias", "use_bidirectional_attention"):
            text.require(key, False, False)
        # libllama and transformers treat these differently.
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            text.require(key, None, None)
        _check_scale(text)
        extra = _window_metadata(text)
        width = head_width(text, _GEMMA)
        window_rope = _rope(text, _WINDOW, width, "rope_local_base_freq", 10000.0)
        if set(window_rope.metadata) != {"rope.freq_base"}:
            raise text.wrong(
                "rope_parameters", "libllama does not support rope scaling in layers with a sliding window"
            )
        if _WINDOW in _layer_types(text):
            extra["rope.freq_base_swa"] = window_rope.metadata["rope.freq_base"]
        rope = _rope(text, _FULL, width, "rope_theta", 1000000.0)
        rope = Rope({**rope.metadata, **extra})
        tied = config.flag("tie_word_embeddings", True)
        return decoder(text, self.names(LANGUAGE), self.names(HEAD), tied, _GEMMA, rope)

    def projector(self) -> Part:
        encoder, pixels, width = self._encoder(), self._normalization(), self._width()
        metadata: dict[str, Value] = {
            "clip.projector_type": "gemma3",
            **encoder.metadata(),
            "clip.vision.projection_dim": width,
            "clip.vision.projector.scale_factor": self._pooled(encoder),
            "clip.vision.image_mean": pixels.mean,
            "clip.vision.image_std": pixels.std,
        }
        tower = self.names(TOWER_MODEL)
        tower.ignore("head.")  # summarises a picture in one vector; the reference does not use it either
        norm, projection = self._connector(encoder, width)
        # libmtmd transposes the projection at run time, which does not work with quantized matrices.
        connector = (
            Weight("mm.soft_emb_norm.weight", norm, exact=True),
            Weight("mm.input_projection.weight", projection, exact=True),
        )
        return Part("clip", metadata, (*encoder.weights(tower), *connector))

    def vision_graph(self, graph: Graph) -> GraphOutput:
        encoder, width = self._encoder(), self._width()
        pool = self._pooled(encoder)
        tokens = (encoder.side // pool) ** 2
        value = encoder.graph(graph, self.names(TOWER_MODEL), self._normalization(), group=pool)
        # Patches are already ordered by squares: the mean over a square is the mean over an axis.
        value = graph.reshape(value, -1, tokens, pool**2, encoder.hidden)
        value = graph.one("ReduceMean", value, axes=[2], keepdims=0)
        norm, projection = self._connector(encoder, width)
        value = layers.norm(graph, value, graph.vector(norm), epsilon=encoder.epsilon)
        transposed = projection.view(lambda data: data.T)
        value = graph.linear(value, transposed, sensitive=True)
        return GraphOutput(value, width, tile=encoder.image, tokens=tokens)

    def _connector(self, encoder: SigLIP, width: int) -> tuple[Tensor, Tensor]:
        """Return the norm's weights plus their offset, [hidden], and the projection, [hidden, width]."""
        names = self.names(CONNECTOR)
        norm = names.tensor("mm_soft_emb_norm.weight", (encoder.hidden,))
        shifted = replace(norm, data=floats(norm) + 1)
        return shifted, names.tensor("mm_input_projection_weight", (encoder.hidden, width))

    def _encoder(self) -> SigLIP:
        config = self.checkpoint.config.present("vision_config")
        config.require("model_type", "siglip_vision_model", "siglip_vision_model")
        encoder = siglip(config, **_VISION_DEFAULTS)
        preprocessor = self.checkpoint.preprocessor
        require_preprocessing(preprocessor, BILINEAR, do_pan_and_scan=False)
        for key in ("height", "width"):
            preprocessor.section("size").require(key, encoder.image, 224)
        return encoder

    def _pooled(self, encoder: SigLIP) -> int:
        """Return the edge, in patches, of the square that becomes one token."""
        config = self.checkpoint.config
        tokens = config.integer("mm_tokens_per_image", 256)
        edge = isqrt(tokens)
        if edge**2 != tokens or encoder.image % encoder.patch or encoder.side % edge:
            raise config.wrong(
                "mm_tokens_per_image", f"{encoder.side} x {encoder.side} patches cannot be pooled to that number"
            )
        self.checkpoint.json("processor_config.json", optional=True).require("image_seq_length", tokens, 256)
        return encoder.side // edge

    def _normalization(self) -> Normalization:
        return read_normalization(self.checkpoint.preprocessor, (0.5,) * 3, (0.5,) * 3)

    def _width(self) -> int:
        return self.checkpoint.config.present("text_config").integer("hidden_size", _GEMMA.defaults["hidden_size"])


def _check_scale(text: Section) -> None:
    """Raise CheckpointError if query_pre_attn_scalar, the scale of queries, is not what libllama computes for it."""
    hidden, heads, layers = (
        text.integer(key, _GEMMA.defaults[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    assumed = hidden // heads if layers == _LAYERS_27B else head_width(text, _GEMMA)
    if text.number("query_pre_attn_scalar", 256.0) != assumed:
        raise text.wrong("query_pre_attn_scalar", f"libllama assumes {assumed} in this model")


def _layer_types(text: Section) -> list[str]:
    """Return the kind of each layer: `layer_types`, or before transformers 5 a window in all but every n-th layer."""
    layers = text.integer("num_hidden_layers", _GEMMA.defaults["num_hidden_layers"], most=MAX_LAYERS)
    types = text.values.get("layer_types")
    if types is None:
        pattern = text.integer("sliding_window_pattern", _PATTERN)
        return [_WINDOW if (layer + 1) % pattern else _FULL for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(kind not in (_WINDOW, _FULL) for kind in types):
        raise text.wrong("layer_types", f"expected a list of {layers} items, each {_WINDOW} or {_FULL}")
    return types


def _window_metadata(text: Section) -> dict[str, Value]:
    """Return the keys of the sliding windows, or nothing if no layer has one."""
    types = _layer_types(text)
    if _WINDOW not in types:
        return {}
    metadata: dict[str, Value] = {"attention.sliding_window": text.integer("sliding_window", 4096)}
    if types != [_FULL if layer % _PATTERN == _PATTERN - 1 else _WINDOW for layer in range(len(types))]:
        metadata["attention.sliding_window_pattern"] = [kind == _WINDOW for kind in types]
    return metadata


def _rope(text: Section, kind: str, width: int, theta_key: str, theta: float) -> Rope:
    """Return the positions of one kind of layer. Before transformers 5 only layers without a window had scaling."""
    by_kind = text.section("rope_parameters")
    if set(by_kind.values) - {_WINDOW, _FULL}:
        raise text.wrong("rope_parameters", f"expected no other keys than {_WINDOW} and {_FULL}")
    parameters = {**by_kind.section(kind).values}
    if kind == _FULL:
        parameters |= text.section("rope_scaling").values
    rope = read_rope(
        Section({"rope_parameters": parameters}, text.path, f"text_config.{kind}."),
        width,
        text.number(theta_key, theta, positive=True),
    )
    if rope.factors is not None:
        raise text.wrong("rope_parameters", "libllama does not support frequency factors in this architecture")
    return rope
