"""Gemma 4: ViT with two kinds of positions and pooling, a decoder with windows whose layers may share keys and values
and take an input of their own for each token.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import TOWER, Family, Names
from pocketvlm_converters.networks.decoder import MOST_LAYERS, embeddings
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
_NEVER = np.float32(1e30)  # a frequency divided by it stands still
_IMAGE_SIZE = 224  # libmtmd wants a value, as its own converter writes it; nothing comes of it
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
        for prefix in _AUDIO:  # pictures and text are all that the runtime has
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
            raise rope.wrong("rope_type", "only axial is supported, which older files call default")
        heads = config.integer("num_attention_heads", 12)
        config.require("num_key_value_heads", heads, 12)
        found = Gemma4ViT(
            hidden=config.integer("hidden_size", 768),
            inner=config.integer("intermediate_size", 3072),
            layers=config.integer("num_hidden_layers", 16, most=MOST_LAYERS),
            heads=heads,
            patch=config.integer("patch_size", 16),
            pool=config.integer("pooling_kernel_size", 3, most=16),
            positions=config.integer("position_embedding_size", 10240),
            epsilon=config.number("rms_norm_eps", 1e-6, positive=True),
            clipped=config.flag("use_clipped_linears", False),
            standard=config.flag("standardize", False),
        )
        if found.hidden % heads or config.integer("head_dim", 64) != found.head or found.head % 4:
            raise config.wrong("head_dim", "libmtmd takes it to be hidden_size / num_attention_heads, a multiple of 4")
        return found

    def _tokens(self) -> int:
        """Embeddings of a picture, at most."""
        preprocessor, encoder = self.checkpoint.preprocessor, self._encoder
        require_preprocessing(preprocessor, BICUBIC, do_normalize=False)
        preprocessor.require("patch_size", encoder.patch, 16)
        preprocessor.require("pooling_kernel_size", encoder.pool, 3)
        tokens = preprocessor.integer("max_soft_tokens", 280)
        if tokens * encoder.pool > encoder.positions:
            raise preprocessor.wrong("max_soft_tokens", f"the encoder has {encoder.positions} positions along an edge")
        return tokens


class _Decoder:
    """The text configuration, read and checked."""

    def __init__(self, text: Section) -> None:
        self.text = text
        text.require("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
        for key in ("attention_bias", "enable_moe_block"):
            text.require(key, False, False)
        if text.values.get("use_bidirectional_attention") not in (None, "vision"):
            raise text.wrong("use_bidirectional_attention", "only vision is supported, or none")
        get = {key: text.integer(key, default) for key, default in _TEXT_DEFAULTS.items()}
        self.hidden, self.inner, self.heads = get["hidden_size"], get["intermediate_size"], get["num_attention_heads"]
        self.vocabulary, self.context, self.window = (
            get["vocab_size"],
            get["max_position_embeddings"],
            get["sliding_window"],
        )
        self.kinds = _kinds(
            text, text.integer("num_hidden_layers", _TEXT_DEFAULTS["num_hidden_layers"], most=MOST_LAYERS)
        )
        self.own = text.integer("hidden_size_per_layer_input", 256, least=0)
        shared = text.integer("num_kv_shared_layers", 0, least=0, most=len(self.kinds) - 1)
        self.first_shared = len(self.kinds) - shared
        if shared and self.kinds[max(0, self.first_shared - 2) : self.first_shared] != [_WINDOW, _FULL]:
            # Layers share those of the last of their kind; libllama looks for it at these places, or ends the process.
            raise text.wrong(
                "num_kv_shared_layers", "the last two layers before them must be with a window and without"
            )
        self.wide = text.flag("use_double_wide_mlp", False)
        self.equal = text.flag("attention_k_eq_v", False)
        self.head = {_WINDOW: get["head_dim"], _FULL: self._of_full("head_dim", "global_head_dim", 512)}
        kv = get["num_key_value_heads"]
        self.kv = {_WINDOW: kv, _FULL: self._of_full("num_key_value_heads", "num_global_key_value_heads", kv)}
        if not self.equal and self.text.values.get("per_layer_config") is None:
            self.kv[_FULL] = kv
        if any(self.heads % count for count in self.kv.values()):
            raise text.wrong("num_key_value_heads", f"num_attention_heads {self.heads} is no multiple of it")

    def _of_full(self, key: str, old: str, default: int) -> int:
        """A size of layers without a window: of transformers 5 for each of them, before for all."""
        listed = self.text.values.get("per_layer_config")
        if listed is None:
            return self.text.integer(old, default)
        by_layer = self.text.section("per_layer_config")
        general = self.text.integer(key, _TEXT_DEFAULTS[key])
        found = {
            by_layer.section(str(number)).integer(key, general)
            for number, kind in enumerate(self.kinds)
            if kind == _FULL
        }
        if len(found) != 1 or any(
            self.kinds[int(n)] != _FULL for n in by_layer.values if n.isdigit() and int(n) < len(self.kinds)
        ):
            raise self.text.wrong("per_layer_config", "layers of one kind must have one size")
        return found.pop()

    def part(self, names: Names, head: Names, config: Section) -> Part:
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

        if self.own:
            self.text.require("vocab_size_per_layer_input", self.vocabulary, _TEXT_DEFAULTS["vocab_size"])
            self.text.require("pad_token_id", 0, 0)  # whose row libllama gives to pictures
            together = len(self.kinds) * self.own
            linear("per_layer_token_embd", "embed_tokens_per_layer", self.vocabulary, together)
            linear("per_layer_model_proj", "per_layer_model_projection", together, self.hidden)
            exact("per_layer_proj_norm", "per_layer_projection_norm.weight", self.own)
        for layer, kind in enumerate(self.kinds):
            here, there, width = f"layers.{layer}.", f"blk.{layer}.", self.head[kind]
            queries, keys, inner = self.heads * width, self.kv[kind] * width, self._inner(layer)
            for gguf, name in _NORMS.items():
                exact(there + gguf, f"{here}{name}.weight", self.hidden)
            exact(f"{there}attn_q_norm", f"{here}self_attn.q_norm.weight", width)
            linear(f"{there}attn_q", f"{here}self_attn.q_proj", queries, self.hidden)
            linear(f"{there}attn_output", f"{here}self_attn.o_proj", self.hidden, queries)
            if layer < self.first_shared:
                exact(f"{there}attn_k_norm", f"{here}self_attn.k_norm.weight", width)
                linear(f"{there}attn_k", f"{here}self_attn.k_proj", keys, self.hidden)
                if not (self.equal and kind == _FULL):
                    linear(f"{there}attn_v", f"{here}self_attn.v_proj", keys, self.hidden)
            else:
                names.ignore(f"{here}self_attn.k_")  # of layers that use those of others, as the reference does
                names.ignore(f"{here}self_attn.v_")
            linear(f"{there}ffn_gate", f"{here}mlp.gate_proj", inner, self.hidden)
            linear(f"{there}ffn_up", f"{here}mlp.up_proj", inner, self.hidden)
            linear(f"{there}ffn_down", f"{here}mlp.down_proj", self.hidden, inner)
            if self.own:
                linear(f"{there}inp_gate", f"{here}per_layer_input_gate", self.own, self.hidden)
                linear(f"{there}proj", f"{here}per_layer_projection", self.hidden, self.own)
                exact(f"{there}post_norm", f"{here}post_per_layer_input_norm.weight", self.hidden)
            exact(f"{there}layer_output_scale", f"{here}layer_scalar", 1)
        exact("output_norm", "norm.weight", self.hidden)
        if output is not None:
            weights.append(Weight("output.weight", output))
        metadata = {f"gemma4.{key}": value for key, value in {**self._metadata(), **ropes}.items()}
        return Part("gemma4", metadata, tuple(weights))

    def _inner(self, layer: int) -> int:
        return self.inner * (2 if self.wide and layer >= self.first_shared else 1)

    def _metadata(self) -> dict[str, Value]:
        layers = range(len(self.kinds))
        found: dict[str, Value] = {
            "block_count": len(self.kinds),
            "context_length": self.context,
            "embedding_length": self.hidden,
            "embedding_length_per_layer_input": self.own,
            "feed_forward_length": [self._inner(layer) for layer in layers] if self.wide else self.inner,
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
            found["final_logit_softcapping"] = self.text.number("final_logit_softcapping", positive=True)
        return found

    def _ropes(self) -> tuple[np.ndarray, dict[str, Value]]:
        """Factors of layers without a window, of whose frequencies most stand still, and the keys of both kinds."""
        by_kind = self.text.section("rope_parameters")
        full, around = by_kind.section(_FULL), by_kind.section(_WINDOW)
        full.require("rope_type", "proportional", "proportional")
        around.require("rope_type", "default", "default")
        around.require("partial_rotary_factor", 1.0, 1.0)
        full.require("factor", 1.0, 1.0)
        half = self.head[_FULL] // 2
        turning = int(full.number("partial_rotary_factor", 0.25, positive=True) * self.head[_FULL] // 2)
        factors = np.where(np.arange(half) < turning, np.float32(1), _NEVER).astype(np.float32)
        return factors, {
            "rope.freq_base": full.number("rope_theta", 1000000.0, positive=True),
            "rope.freq_base_swa": around.number("rope_theta", 10000.0, positive=True),
            "rope.dimension_count": self.head[_FULL],
            "rope.dimension_count_swa": self.head[_WINDOW],
        }


def _kinds(text: Section, layers: int) -> list[str]:
    kinds = text.values.get("layer_types")
    if kinds is None:
        kinds = [_WINDOW if (layer + 1) % 6 else _FULL for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_WINDOW, _FULL) for kind in kinds):
        raise text.wrong("layer_types", f"{_WINDOW} or {_FULL} is needed for each of {layers} layers")
    return [*kinds[:-1], _FULL]  # of the last one transformers makes it, whatever the file says
