"""Gemma 4: a ViT with two kinds of positions and pooling, and a decoder with sliding windows.

The decoder's layers may share keys and values, and may have an embedding of their own for each token.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import TOWER, Family, Names
from pocketvlm_converters.networks.decoder import MAX_LAYERS, embeddings
from pocketvlm_converters.networks.gemma4_vit import Gemma4ViT
from pocketvlm_converters.onnx.graph import Graph, GraphOutput
from pocketvlm_converters.onnx.layers import norm
from pocketvlm_converters.onnx.patches import BICUBIC, require_preprocessing
from pocketvlm_converters.weights import Part, Value, Weight

_TEXT_DEFAULTS = {  # transformers' Gemma4TextConfig
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 131072,
    "sliding_window": 512,
}
_WINDOW, _FULL = "sliding_attention", "full_attention"
_NO_ROTATION = np.float32(1e30)  # a frequency divided by it is practically 0
_IMAGE_SIZE = 224  # pixels; libmtmd requires the key, llama.cpp's converter writes this value; it has no effect
_TEXT = ("model.language_model.", "language_model.model.", "language_model.")
_EMBEDDER = ("model.embed_vision.", "embed_vision.")
_AUDIO = ("model.audio_tower.", "audio_tower.", "model.embed_audio.", "embed_audio.")
_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


class Gemma4(Family):
    model_types: ClassVar[frozenset[str]] = frozenset({"gemma4"})

    def language(self) -> Part:
        config, text = self.checkpoint.config, self._text
        for prefix in _AUDIO:  # the runtime supports only pictures and text
            self.names((prefix,)).ignore("")
        return _Decoder(text).part(self.names(_TEXT), self.names(("",)), config)

    def projector(self) -> Part:
        encoder, text = self._encoder, self._text
        weights = encoder.weights(self.names(TOWER))
        weights.append(Weight("mm.input_projection.weight", self._projection))
        metadata: dict[str, Value] = {
            "clip.projector_type": "gemma4v",
            **encoder.metadata(),
            "clip.vision.image_size": _IMAGE_SIZE,
            "clip.vision.projection_dim": self._width,
            "clip.vision.image_mean": [0.0] * 3,
            "clip.vision.image_std": [1.0] * 3,
            "pocketvlm.picture_tokens": self._tokens(),
            "pocketvlm.video_tokens": self._video_tokens(),
            "pocketvlm.non_causal": text.values.get("use_bidirectional_attention") == "vision",
        }
        return Part("clip", metadata, tuple(weights))

    def vision_graph(self, graph: Graph) -> GraphOutput:
        value = self._encoder.graph(graph, self.names(TOWER))
        value = norm(graph, value, graph.number(1.0), epsilon=self._encoder.epsilon)
        return GraphOutput(graph.linear(value, self._projection, sensitive=True), self._width)

    @cached_property
    def _text(self) -> Section:
        text = self.checkpoint.config.present("text_config")
        text.require("model_type", "gemma4_text", "gemma4_text")
        return text

    @property
    def _width(self) -> int:
        return self._text.integer("hidden_size", _TEXT_DEFAULTS["hidden_size"])

    @property
    def _projection(self) -> Tensor:
        names = self.names(_EMBEDDER)
        return names.tensor("embedding_projection.weight", (self._width, self._encoder.hidden))

    @cached_property
    def _encoder(self) -> Gemma4ViT:
        config = self.checkpoint.config.present("vision_config")
        config.require("model_type", "gemma4_vision", "gemma4_vision")
        config.require("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
        config.require("attention_bias", False, False)
        rope = config.section("rope_parameters")
        rope.require("rope_theta", 100.0, 100.0)
        if rope.text("rope_type", "axial") not in ("axial", "default"):
            raise rope.wrong("rope_type", "only axial is supported (older files call it default)")
        heads = config.integer("num_attention_heads", 12)
        config.require("num_key_value_heads", heads, 12)
        encoder = Gemma4ViT(
            hidden=config.integer("hidden_size", 768),
            inner=config.integer("intermediate_size", 3072),
            layers=config.integer("num_hidden_layers", 16, most=MAX_LAYERS),
            heads=heads,
            patch=config.integer("patch_size", 16),
            pool=config.integer("pooling_kernel_size", 3, most=16),
            positions=config.integer("position_embedding_size", 10240),
            epsilon=config.number("rms_norm_eps", 1e-6, positive=True),
            clipped=config.flag("use_clipped_linears", False),
            standard=config.flag("standardize", False),
        )
        if encoder.hidden % heads or config.integer("head_dim", 64) != encoder.head or encoder.head % 4:
            raise config.wrong("head_dim", "libmtmd expects hidden_size / num_attention_heads, a multiple of 4")
        return encoder

    def _tokens(self) -> int:
        """Return the maximum number of embeddings of a picture."""
        preprocessor, encoder = self.checkpoint.preprocessor, self._encoder
        require_preprocessing(preprocessor, BICUBIC, do_normalize=False)
        preprocessor.require("patch_size", encoder.patch, 16)
        preprocessor.require("pooling_kernel_size", encoder.pool, 3)
        tokens = preprocessor.integer("max_soft_tokens", 280)
        if tokens * encoder.pool > encoder.positions:
            raise preprocessor.wrong(
                "max_soft_tokens", f"that needs more than the encoder's {encoder.positions} positions along an edge"
            )
        return tokens

    def _video_tokens(self) -> int:
        """Return the maximum number of embeddings of a video's frame."""
        return self.checkpoint.video_processor.integer("max_soft_tokens", 70)


class _Decoder:
    """The decoder, from the text configuration. Raises CheckpointError for what libllama does not support."""

    def __init__(self, text: Section) -> None:
        self.text = text
        text.require("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
        for key in ("attention_bias", "enable_moe_block"):
            text.require(key, False, False)
        if text.values.get("use_bidirectional_attention") not in (None, "vision"):
            raise text.wrong("use_bidirectional_attention", "only 'vision' and null are supported")
        sizes = {key: text.integer(key, default) for key, default in _TEXT_DEFAULTS.items()}
        self.hidden, self.inner, self.heads = (
            sizes["hidden_size"],
            sizes["intermediate_size"],
            sizes["num_attention_heads"],
        )
        self.vocabulary, self.context, self.window = (
            sizes["vocab_size"],
            sizes["max_position_embeddings"],
            sizes["sliding_window"],
        )
        self.kinds = _kinds(
            text, text.integer("num_hidden_layers", _TEXT_DEFAULTS["num_hidden_layers"], most=MAX_LAYERS)
        )
        self.per_layer_width = text.integer("hidden_size_per_layer_input", 256, least=0)
        shared = text.integer("num_kv_shared_layers", 0, least=0, most=len(self.kinds) - 1)
        self.first_shared = len(self.kinds) - shared
        if shared and self.kinds[max(0, self.first_shared - 2) : self.first_shared] != [_WINDOW, _FULL]:
            # Layers share keys and values with the last layer of their kind before them. libllama expects it at these
            # two places, and aborts the process otherwise.
            raise text.wrong("num_kv_shared_layers", f"the two layers before them must be {_WINDOW} and {_FULL}")
        self.double_wide = text.flag("use_double_wide_mlp", False)
        self.keys_are_values = text.flag("attention_k_eq_v", False)
        self.head = {_WINDOW: sizes["head_dim"], _FULL: self._full_layer_size("head_dim", "global_head_dim", 512)}
        kv = sizes["num_key_value_heads"]
        self.kv = {_WINDOW: kv, _FULL: self._full_layer_size("num_key_value_heads", "num_global_key_value_heads", kv)}
        if not self.keys_are_values and self.text.values.get("per_layer_config") is None:
            self.kv[_FULL] = kv
        if any(self.heads % count for count in self.kv.values()):
            raise text.wrong("num_key_value_heads", f"num_attention_heads {self.heads} is not a multiple of it")

    def _full_layer_size(self, key: str, old: str, default: int) -> int:
        """Return a size of the layers without a window: transformers 5 lists it by layer, before it was under `old`."""
        if self.text.values.get("per_layer_config") is None:
            return self.text.integer(old, default)
        by_layer = self.text.section("per_layer_config")
        general = self.text.integer(key, _TEXT_DEFAULTS[key])
        sizes = {
            by_layer.section(str(number)).integer(key, general)
            for number, kind in enumerate(self.kinds)
            if kind == _FULL
        }
        if len(sizes) != 1 or any(
            self.kinds[int(n)] != _FULL for n in by_layer.values if n.isdigit() and int(n) < len(self.kinds)
        ):
            raise self.text.wrong("per_layer_config", "layers of one kind must have the same size")
        return sizes.pop()

    def part(self, names: Names, head: Names, config: Section) -> Part:
        """Return weights and metadata. `names` has the decoder's tensors, `head` has `lm_head.weight`."""
        tied = config.flag("tie_word_embeddings", True)
        weights: list[Weight] = []
        embedding, output = embeddings(names, head, tied, (self.vocabulary, self.hidden))
        weights.append(Weight("token_embd.weight", embedding))
        factors, ropes = self._ropes()
        weights.append(Weight("rope_freqs.weight", Tensor("rope_freqs", factors), exact=True))

        def exact(gguf: str, name: str, *shape: int) -> None:
            weights.append(Weight(f"{gguf}.weight", names.tensor(name, shape), exact=True))

        def linear(gguf: str, name: str, *shape: int) -> None:
            weights.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape)))

        if self.per_layer_width:
            self.text.require("vocab_size_per_layer_input", self.vocabulary, _TEXT_DEFAULTS["vocab_size"])
            self.text.require("pad_token_id", 0, 0)  # libllama uses the row of token 0 for pictures
            per_layer_total = len(self.kinds) * self.per_layer_width
            linear("per_layer_token_embd", "embed_tokens_per_layer", self.vocabulary, per_layer_total)
            linear("per_layer_model_proj", "per_layer_model_projection", per_layer_total, self.hidden)
            exact("per_layer_proj_norm", "per_layer_projection_norm.weight", self.per_layer_width)
        for layer, kind in enumerate(self.kinds):
            source, target, width = f"layers.{layer}.", f"blk.{layer}.", self.head[kind]
            queries, keys, inner = self.heads * width, self.kv[kind] * width, self._inner(layer)
            for gguf, name in _NORMS.items():
                exact(target + gguf, f"{source}{name}.weight", self.hidden)
            exact(f"{target}attn_q_norm", f"{source}self_attn.q_norm.weight", width)
            linear(f"{target}attn_q", f"{source}self_attn.q_proj", queries, self.hidden)
            linear(f"{target}attn_output", f"{source}self_attn.o_proj", self.hidden, queries)
            if layer < self.first_shared:
                exact(f"{target}attn_k_norm", f"{source}self_attn.k_norm.weight", width)
                linear(f"{target}attn_k", f"{source}self_attn.k_proj", keys, self.hidden)
                if not (self.keys_are_values and kind == _FULL):
                    linear(f"{target}attn_v", f"{source}self_attn.v_proj", keys, self.hidden)
            else:
                # This layer shares those of an earlier one; the reference ignores its own, too.
                names.ignore(f"{source}self_attn.k_")
                names.ignore(f"{source}self_attn.v_")
            linear(f"{target}ffn_gate", f"{source}mlp.gate_proj", inner, self.hidden)
            linear(f"{target}ffn_up", f"{source}mlp.up_proj", inner, self.hidden)
            linear(f"{target}ffn_down", f"{source}mlp.down_proj", self.hidden, inner)
            if self.per_layer_width:
                linear(f"{target}inp_gate", f"{source}per_layer_input_gate", self.per_layer_width, self.hidden)
                linear(f"{target}proj", f"{source}per_layer_projection", self.hidden, self.per_layer_width)
                exact(f"{target}post_norm", f"{source}post_per_layer_input_norm.weight", self.hidden)
            exact(f"{target}layer_output_scale", f"{source}layer_scalar", 1)
        exact("output_norm", "norm.weight", self.hidden)
        if output is not None:
            weights.append(Weight("output.weight", output))
        metadata = {f"gemma4.{key}": value for key, value in {**self._metadata(), **ropes}.items()}
        return Part("gemma4", metadata, tuple(weights))

    def _inner(self, layer: int) -> int:
        return self.inner * (2 if self.double_wide and layer >= self.first_shared else 1)

    def _metadata(self) -> dict[str, Value]:
        layers = range(len(self.kinds))
        metadata: dict[str, Value] = {
            "block_count": len(self.kinds),
            "context_length": self.context,
            "embedding_length": self.hidden,
            "embedding_length_per_layer_input": self.per_layer_width,
            "feed_forward_length": [self._inner(layer) for layer in layers] if self.double_wide else self.inner,
            "attention.head_count": self.heads,
            "attention.head_count_kv": [self.kv[kind] for kind in self.kinds],
            "attention.key_length": self.head[_FULL],
            "attention.value_length": self.head[_FULL],
            "attention.key_length_swa": self.head[_WINDOW],
            "attention.value_length_swa": self.head[_WINDOW],
            "attention.layer_norm_rms_epsilon": self.text.number("rms_norm_eps", 1e-6, positive=True),
            "attention.sliding_window": self.window,
            "attention.sliding_window_pattern": [kind == _WINDOW for kind in self.kinds],
            "attention.shared_kv_layers": len(self.kinds) - self.first_shared,
            "vocab_size": self.vocabulary,
        }
        if self.text.values.get("final_logit_softcapping") is not None:
            metadata["final_logit_softcapping"] = self.text.number("final_logit_softcapping", positive=True)
        return metadata

    def _ropes(self) -> tuple[np.ndarray, dict[str, Value]]:
        """Return the frequency factors of the layers without a window, and the keys of both kinds.

        Those layers rotate by a quarter of their frequencies, or by `partial_rotary_factor`.
        """
        by_kind = self.text.section("rope_parameters")
        full, window = by_kind.section(_FULL), by_kind.section(_WINDOW)
        full.require("rope_type", "proportional", "proportional")
        window.require("rope_type", "default", "default")
        window.require("partial_rotary_factor", 1.0, 1.0)
        full.require("factor", 1.0, 1.0)
        half = self.head[_FULL] // 2
        rotating = int(full.number("partial_rotary_factor", 0.25, positive=True) * self.head[_FULL] // 2)
        factors = np.where(np.arange(half) < rotating, np.float32(1), _NO_ROTATION).astype(np.float32)
        return factors, {
            "rope.freq_base": full.number("rope_theta", 1000000.0, positive=True),
            "rope.freq_base_swa": window.number("rope_theta", 10000.0, positive=True),
            "rope.dimension_count": self.head[_FULL],
            "rope.dimension_count_swa": self.head[_WINDOW],
        }


def _kinds(text: Section, layers: int) -> list[str]:
    """Return the kind of each layer."""
    kinds = text.values.get("layer_types")
    if kinds is None:
        kinds = [_WINDOW if (layer + 1) % 6 else _FULL for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_WINDOW, _FULL) for kind in kinds):
        raise text.wrong("layer_types", f"expected a list of {layers} items, each {_WINDOW} or {_FULL}")
    return [*kinds[:-1], _FULL]  # transformers never gives the last layer a window
