"""Gemma 3: SigLIP encoder, average pooling, one projection, Gemma decoder with a sliding window on most layers."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import CONNECTOR, HEAD, LANGUAGE, TOWER_MODEL, Family
from pocketvlm_converters.networks.decoder import MOST_LAYERS, DecoderStyle, decoder, head_width
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
    defaults={  # transformers' Gemma3TextConfig; the files on the hub leave most of it out
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
_PATTERN = 6  # of these layers the last has no window, where neither file says otherwise: transformers and libllama
_LAYERS_27B = 62  # by which libllama knows the one model that scales its queries by another width than its heads'


class Gemma3(Family):
    model_types: ClassVar[frozenset[str]] = frozenset({"gemma3"})

    def language(self) -> Part:
        config, text = self.checkpoint.config, self.checkpoint.config.present("text_config")
        text.require("model_type", "gemma3_text", "gemma3_text")
        text.require("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
        for key in ("attention_bias", "use_bidirectional_attention"):
            text.require(key, False, False)
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):  # libllama and transformers disagree on them
            text.require(key, None, None)
        _check_scale(text)
        extra = _windows(text)
        width = head_width(text, _GEMMA)
        around = _rope(text, _WINDOW, width, "rope_local_base_freq", 10000.0)
        if set(around.metadata) != {"rope.freq_base"}:
            raise text.wrong("rope_parameters", "libllama scales no positions in layers with a window")
        if _WINDOW in _layer_types(text):
            extra["rope.freq_base_swa"] = around.metadata["rope.freq_base"]
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
        seen = self.names(TOWER_MODEL)
        seen.ignore("head.")  # sums a picture up in one vector, which the reference does not use either
        norm, projection = self._connector(encoder, width)
        # libmtmd transposes the projection when it runs, which it cannot do with a quantized one.
        connector = (
            Weight("mm.soft_emb_norm.weight", norm, exact=True),
            Weight("mm.input_projection.weight", projection, exact=True),
        )
        return Part("clip", metadata, (*encoder.weights(seen), *connector))

    def vision_graph(self, graph: Graph) -> GraphOutput:
        encoder, width = self._encoder(), self._width()
        pool = self._pooled(encoder)
        tokens = (encoder.side // pool) ** 2
        value = encoder.graph(graph, self.names(TOWER_MODEL), self._normalization(), group=pool)
        # Patches come in squares already: the mean over a square is that over an axis.
        value = graph.reshape(value, -1, tokens, pool**2, encoder.hidden)
        value = graph.one("ReduceMean", value, axes=[2], keepdims=0)
        norm, projection = self._connector(encoder, width)
        value = layers.norm(graph, value, graph.vector(norm), epsilon=encoder.epsilon)
        transposed = replace(projection, data=projection.data.T)
        value = graph.linear(value, transposed, sensitive=True)
        return GraphOutput(value, width, tile=encoder.image, tokens=tokens)

    def _connector(self, encoder: SigLIP, width: int) -> tuple[Tensor, Tensor]:
        """The norm's weights with their offset, [hidden], and the projection [hidden, width]."""
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
        """Patches along an edge of the square that becomes one token."""
        config = self.checkpoint.config
        tokens = config.integer("mm_tokens_per_image", 256)
        along = isqrt(tokens)
        if along**2 != tokens or encoder.image % encoder.patch or encoder.side % along:
            raise config.wrong("mm_tokens_per_image", f"{encoder.side} x {encoder.side} patches do not pool to it")
        self.checkpoint.json("processor_config.json", optional=True).require("image_seq_length", tokens, 256)
        return encoder.side // along

    def _normalization(self) -> Normalization:
        return read_normalization(self.checkpoint.preprocessor, (0.5,) * 3, (0.5,) * 3)

    def _width(self) -> int:
        return self.checkpoint.config.present("text_config").integer("hidden_size", _GEMMA.defaults["hidden_size"])


def _check_scale(text: Section) -> None:
    """Queries are divided by the root of query_pre_attn_scalar, of which libllama has an opinion of its own."""
    hidden, heads, layers = (
        text.integer(key, _GEMMA.defaults[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    assumed = hidden // heads if layers == _LAYERS_27B else head_width(text, _GEMMA)
    if text.number("query_pre_attn_scalar", 256.0) != assumed:
        raise text.wrong("query_pre_attn_scalar", f"libllama takes it to be {assumed} in this model")


def _layer_types(text: Section) -> list[str]:
    """Which layers have a window: `layer_types`, or before transformers 5 every one but each n-th."""
    layers = text.integer("num_hidden_layers", _GEMMA.defaults["num_hidden_layers"], most=MOST_LAYERS)
    types = text.values.get("layer_types")
    if types is None:
        pattern = text.integer("sliding_window_pattern", _PATTERN)
        return [_WINDOW if (layer + 1) % pattern else _FULL for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers or any(kind not in (_WINDOW, _FULL) for kind in types):
        raise text.wrong("layer_types", f"{_WINDOW} or {_FULL} is needed for each of {layers} layers")
    return types


def _windows(text: Section) -> dict[str, Value]:
    types = _layer_types(text)
    if _WINDOW not in types:
        return {}
    found: dict[str, Value] = {"attention.sliding_window": text.integer("sliding_window", 4096)}
    if types != [_FULL if layer % _PATTERN == _PATTERN - 1 else _WINDOW for layer in range(len(types))]:
        found["attention.sliding_window_pattern"] = [kind == _WINDOW for kind in types]
    return found


def _rope(text: Section, kind: str, width: int, theta_key: str, theta: float) -> Rope:
    """Of one kind of layer. Before transformers 5 there was no scaling but that of the layers without a window."""
    by_kind = text.section("rope_parameters")
    if set(by_kind.values) - {_WINDOW, _FULL}:
        raise text.wrong("rope_parameters", f"only {_WINDOW} and {_FULL} are expected in it")
    described = {**by_kind.section(kind).values}
    if kind == _FULL:
        described |= text.section("rope_scaling").values
    found = read_rope(
        Section({"rope_parameters": described}, text.path, f"text_config.{kind}."),
        width,
        text.number(theta_key, theta, positive=True),
    )
    if found.factors is not None:
        raise text.wrong("rope_parameters", "libllama takes no factors of frequencies for this architecture")
    return found
