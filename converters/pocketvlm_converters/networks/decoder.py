"""A decoder with rotary positions and a gated MLP as GGUF: hyperparameters, tensor names, rotary order.

Shared by every family that has one; a `DecoderStyle` says how it differs from the first of its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.rope import Rope
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Part, Value, Weight

_DEFAULTS = {  # transformers' LlamaConfig
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
MOST_LAYERS = 512  # LLAMA_MAX_LAYERS
_WIDEST_HEAD = 1 << 16
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


@dataclass(frozen=True)
class DecoderStyle:
    """What a decoder's graph in libllama is like.

    `rotates_neighbours`: it rotates values (0, 1), (2, 3), ..., else halves; transformers likewise, by
    `given_neighbours`. Where they differ, rows of queries and keys change places. `fused_mlp`: gate and up are one
    matrix in both. `qkv_bias` None goes by `attention_bias` of the configuration, for the output too.
    `norms` are a layer's, as GGUF and the checkpoint call them; `head_norms` those of single heads. `norm_offset` is
    added to the weights of all norms. `defaults` and `epsilon` (rms_norm_eps) are what the configuration class fills
    in.
    """

    architecture: str
    rotates_neighbours: bool = False
    given_neighbours: bool = False
    fused_mlp: bool = False
    qkv_bias: bool | None = None
    norms: Mapping[str, str] = field(default_factory=lambda: _NORMS)
    head_norms: Mapping[str, str] = field(default_factory=dict)
    norm_offset: float = 0.0
    defaults: Mapping[str, int] = field(default_factory=dict)
    epsilon: float = 1e-6


def decoder(config: Section, names: Names, head: Names, tied: bool, style: DecoderStyle, rope: Rope) -> Part:
    """`config` is the text configuration, `names` the decoder's tensors, `head` holds `lm_head.weight`.

    With `tied`, the head is written only if the checkpoint has one that differs, as transformers does. The family
    adds to the metadata what else libllama wants.
    """
    defaults = {**_DEFAULTS, **style.defaults}
    hidden, inner, layers, heads, vocabulary, context = (config.integer(key, defaults[key]) for key in _DEFAULTS)
    kv_heads = config.integer("num_key_value_heads", style.defaults.get("num_key_value_heads", heads))
    width = head_width(config, style)
    queries, keys = heads * width, kv_heads * width
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"num_attention_heads {heads} is no multiple of it")
    bias = style.qkv_bias if style.qkv_bias is not None else config.flag("attention_bias", False)
    output_bias = style.qkv_bias is None and bias
    mlp_bias = config.flag("mlp_bias", False)

    weights: list[Weight] = []
    embedding, output = embeddings(names, head, tied, (vocabulary, hidden))
    weights.append(Weight("token_embd.weight", embedding))
    if rope.factors is not None:
        weights.append(Weight("rope_freqs.weight", Tensor("rope_freqs", rope.factors), exact=True))

    def norm(gguf: str, name: str, size: int) -> None:
        tensor = names.tensor(f"{name}.weight", (size,))
        if style.norm_offset:
            tensor = replace(tensor, data=floats(tensor) + np.float32(style.norm_offset))
        weights.append(Weight(f"{gguf}.weight", tensor, exact=True))

    def linear(gguf: str, name: str, shape: tuple[int, int], biased: bool, rotary_heads: int = 0) -> None:
        tensor = names.tensor(f"{name}.weight", shape)  # first: a configuration can ask for any size
        order = _reordered(style, rotary_heads, width) if rotary_heads else None
        weights.append(Weight(f"{gguf}.weight", tensor, order))
        if biased:
            flat = names.tensor(f"{name}.bias", shape[:1])
            if order is not None:
                flat = replace(flat, data=flat.data[order])
            weights.append(Weight(f"{gguf}.bias", flat, exact=True))

    for layer in range(layers):
        here, there = f"layers.{layer}.", f"blk.{layer}."
        for gguf, name in style.norms.items():
            norm(there + gguf, here + name, hidden)
        for gguf, name in style.head_norms.items():
            norm(there + gguf, f"{here}self_attn.{name}", width)
        linear(f"{there}attn_q", f"{here}self_attn.q_proj", (queries, hidden), bias, heads)
        linear(f"{there}attn_k", f"{here}self_attn.k_proj", (keys, hidden), bias, kv_heads)
        linear(f"{there}attn_v", f"{here}self_attn.v_proj", (keys, hidden), bias)
        linear(f"{there}attn_output", f"{here}self_attn.o_proj", (hidden, queries), output_bias)
        if style.fused_mlp:
            linear(f"{there}ffn_up", f"{here}mlp.gate_up_proj", (2 * inner, hidden), mlp_bias)
        else:
            linear(f"{there}ffn_gate", f"{here}mlp.gate_proj", (inner, hidden), mlp_bias)
            linear(f"{there}ffn_up", f"{here}mlp.up_proj", (inner, hidden), mlp_bias)
        linear(f"{there}ffn_down", f"{here}mlp.down_proj", (hidden, inner), mlp_bias)
    norm("output_norm", "norm", hidden)
    if output is not None:
        weights.append(Weight("output.weight", output))

    metadata: dict[str, Value] = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": hidden,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", style.epsilon, positive=True),
        "vocab_size": vocabulary,
        "rope.dimension_count": width,
        **rope.metadata,
    }
    prefixed = {f"{style.architecture}.{key}": value for key, value in metadata.items()}
    return Part(style.architecture, prefixed, tuple(weights))


def head_width(config: Section, style: DecoderStyle) -> int:
    """`head_dim`, or the hidden size divided by the heads. Raises CheckpointError where that is no even number."""
    defaults = {**_DEFAULTS, **style.defaults}
    hidden, heads = (config.integer(key, defaults[key]) for key in ("hidden_size", "num_attention_heads"))
    default = style.defaults.get("head_dim", 0)
    if not default and hidden % heads and config.values.get("head_dim") is None:
        raise config.wrong("num_attention_heads", f"hidden_size {hidden} is no multiple of it")
    width = config.integer("head_dim", default or hidden // heads, most=_WIDEST_HEAD)
    if width % 2:
        raise config.wrong("head_dim", f"heads of {width} values cannot be rotated in pairs")
    return width


def require_full_attention(config: Section) -> None:
    """Refuse a window in a configuration that may ask for one, of a decoder that has none in libllama."""
    config.require("use_sliding_window", False, False)
    kinds = config.values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise config.wrong("layer_types", "only full_attention is supported")


def embeddings(names: Names, head: Names, tied: bool, shape: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """The embedding and, where it is not the same, the head."""
    if not tied:
        return names.tensor("embed_tokens.weight", shape), head.tensor("lm_head.weight", shape)
    if "embed_tokens.weight" not in names and "lm_head.weight" in head:  # saved under the head's name
        return head.tensor("lm_head.weight", shape), None
    embedding = names.tensor("embed_tokens.weight", shape)
    if "lm_head.weight" not in head:
        return embedding, None
    output = head.tensor("lm_head.weight", shape)
    same = embedding.dtype == output.dtype and all(
        np.array_equal(one, other) for one, other in zip(embedding.blocks(), output.blocks(), strict=True)
    )
    return embedding, None if same else output


def _reordered(style: DecoderStyle, heads: int, width: int) -> npt.NDArray[np.intp] | None:
    """The order of rows of queries or keys that libllama wants."""
    if style.rotates_neighbours == style.given_neighbours:
        return None
    order = rotary_order(heads, width)
    return order if style.rotates_neighbours else np.argsort(order)


def rotary_order(heads: int, width: int) -> npt.NDArray[np.intp]:
    """Rows of halves (0, width / 2), (1, width / 2 + 1), ... as neighbours (0, 1), (2, 3), ..."""
    rows = np.arange(heads * width, dtype=np.intp).reshape(heads, 2, width // 2)
    order: npt.NDArray[np.intp] = rows.transpose(0, 2, 1).reshape(-1)
    return order
