"""A decoder with rotary positions and a gated MLP as GGUF: hyperparameters, tensor names, rotary order.

A `DecoderStyle` describes how an architecture differs from Llama.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp
_MAX_HEAD_WIDTH = 1 << 16  # values; far beyond any model, bounds what a damaged configuration can ask for
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


@dataclass(frozen=True)
class DecoderStyle:
    """How a decoder's graph in libllama is built, and how the checkpoint differs from it.

    - `rotates_neighbours`: libllama rotates values (0, 1), (2, 3), ...; otherwise it rotates halves.
    - `given_neighbours`: the same for the checkpoint, as transformers reads it. If the two differ, the rows of queries
      and keys are reordered.
    - `fused_mlp`: gate and up are one matrix, in GGUF and in the checkpoint.
    - `qkv_bias`: whether queries, keys and values have biases. With None, `attention_bias` of the configuration
      decides, for the output matrix as well.
    - `norms`: names of a layer's norms, GGUF's to the checkpoint's; `head_norms`: names of the norms of single heads.
    - `norm_offset`: added to the weights of all norms.
    - `defaults`, `epsilon` (rms_norm_eps): the defaults of the configuration class.
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
    """Return the decoder's weights and metadata. The family adds the keys that only its architecture has.

    `config` is the text configuration, `names` has the decoder's tensors, `head` has `lm_head.weight`. With `tied`,
    the head is written only if the checkpoint has one that differs, as transformers does it. Raises CheckpointError.
    """
    defaults = {**_DEFAULTS, **style.defaults}
    hidden, inner, layers, heads, vocabulary, context = (config.integer(key, defaults[key]) for key in _DEFAULTS)
    kv_heads = config.integer("num_key_value_heads", style.defaults.get("num_key_value_heads", heads))
    width = head_width(config, style)
    rotated = rope.width or width
    queries, keys = heads * width, kv_heads * width
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"num_attention_heads {heads} is not a multiple of it")
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
        # Checks the sizes, which a configuration can set to anything; so it comes before `_row_order`.
        tensor = names.tensor(f"{name}.weight", shape)
        rows = _row_order(style, rotary_heads, width, rotated) if rotary_heads else None
        weights.append(Weight(f"{gguf}.weight", tensor, rows))
        if biased:
            bias = names.tensor(f"{name}.bias", shape[:1])
            if rows is not None:
                bias = bias[rows]
            weights.append(Weight(f"{gguf}.bias", bias, exact=True))

    for layer in range(layers):
        source, target = f"layers.{layer}.", f"blk.{layer}."
        for gguf, name in style.norms.items():
            norm(target + gguf, source + name, hidden)
        for gguf, name in style.head_norms.items():
            norm(target + gguf, f"{source}self_attn.{name}", width)
        linear(f"{target}attn_q", f"{source}self_attn.q_proj", (queries, hidden), bias, heads)
        linear(f"{target}attn_k", f"{source}self_attn.k_proj", (keys, hidden), bias, kv_heads)
        linear(f"{target}attn_v", f"{source}self_attn.v_proj", (keys, hidden), bias)
        linear(f"{target}attn_output", f"{source}self_attn.o_proj", (hidden, queries), output_bias)
        if style.fused_mlp:
            linear(f"{target}ffn_up", f"{source}mlp.gate_up_proj", (2 * inner, hidden), mlp_bias)
        else:
            linear(f"{target}ffn_gate", f"{source}mlp.gate_proj", (inner, hidden), mlp_bias)
            linear(f"{target}ffn_up", f"{source}mlp.up_proj", (inner, hidden), mlp_bias)
        linear(f"{target}ffn_down", f"{source}mlp.down_proj", (hidden, inner), mlp_bias)
    norm("output_norm", "norm", hidden)
    if output is not None:
        weights.append(Weight("output.weight", output))

    metadata: dict[str, Value] = {
        **size_metadata(layers, context, hidden, inner, heads, kv_heads, width),
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", style.epsilon, positive=True),
        "vocab_size": vocabulary,
        "rope.dimension_count": rotated,
        **rope.metadata,
    }
    return decoder_part(style.architecture, metadata, weights)


def size_metadata(
    layers: int, context: int, hidden: int, inner: int, heads: int, kv_heads: int | Sequence[int], width: int
) -> dict[str, Value]:
    """Return the keys of sizes that all decoders here have. `kv_heads` may differ by layer."""
    return {
        "block_count": layers,
        "context_length": context,
        "embedding_length": hidden,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": width,
        "attention.value_length": width,
    }


def decoder_part(architecture: str, metadata: Mapping[str, Value], weights: Iterable[Weight]) -> Part:
    """Return the part of a decoder; GGUF's keys begin with the architecture."""
    return Part(architecture, {f"{architecture}.{key}": value for key, value in metadata.items()}, tuple(weights))


def head_width(config: Section, style: DecoderStyle) -> int:
    """Return `head_dim`, or hidden_size / num_attention_heads. Raises CheckpointError unless it is an even number."""
    defaults = {**_DEFAULTS, **style.defaults}
    hidden, heads = (config.integer(key, defaults[key]) for key in ("hidden_size", "num_attention_heads"))
    default = style.defaults.get("head_dim", 0)
    if not default and hidden % heads and config.values.get("head_dim") is None:
        raise config.wrong("num_attention_heads", f"hidden_size {hidden} is not a multiple of it")
    width = config.integer("head_dim", default or hidden // heads, most=_MAX_HEAD_WIDTH)
    if width % 2:
        raise config.wrong("head_dim", f"heads of {width} values cannot be rotated in pairs; the width must be even")
    return width


def require_full_attention(config: Section) -> None:
    """Raise CheckpointError for sliding windows, which libllama does not have in the decoders that call this."""
    config.require("use_sliding_window", False, False)
    kinds = config.values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise config.wrong("layer_types", "only full_attention is supported")


def embeddings(names: Names, head: Names, tied: bool, shape: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Return the embedding, and the head if it differs from the embedding."""
    if not tied:
        return names.tensor("embed_tokens.weight", shape), head.tensor("lm_head.weight", shape)
    if "embed_tokens.weight" not in names and "lm_head.weight" in head:  # one matrix, saved under the head's name
        matrix = head.stored("lm_head.weight", shape)
    else:
        matrix = names.stored("embed_tokens.weight", shape)
        if "lm_head.weight" in head and not _same(matrix, head.stored("lm_head.weight", shape)):
            return names.tensor("embed_tokens.weight", shape), head.tensor("lm_head.weight", shape)
    embedding, output = names.merged("embed_tokens.weight", matrix), head.merged("lm_head.weight", matrix)
    # An adapter changes the module that it names: the embedding, or the head, although both have the same matrix. PEFT
    # gives rows that replace the embedding's to the head, too, but not the other way round.
    if names.separate("embed_tokens.weight", matrix, rows=False) or head.separate("lm_head.weight", matrix, rows=True):
        return embedding, output
    if names.changed("embed_tokens.weight", matrix) or not head.changed("lm_head.weight", matrix):
        return embedding, None
    return replace(output, given_label=embedding.given_label), None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and all(
        np.array_equal(mine, yours) for mine, yours in zip(one.blocks(), other.blocks(), strict=True)
    )


def _row_order(style: DecoderStyle, heads: int, width: int, rotated: int) -> npt.NDArray[np.intp] | None:
    """Return the order of rows of queries or keys for libllama, or None for the checkpoint's own order."""
    if style.rotates_neighbours == style.given_neighbours:
        return None
    order = rotary_order(heads, width, rotated)
    return order if style.rotates_neighbours else np.argsort(order)


def rotary_order(heads: int, width: int, rotated: int | None = None) -> npt.NDArray[np.intp]:
    """Return the order that makes the halves (0, n / 2), (1, n / 2 + 1), ... neighbours (0, 1), (2, 3), ...

    n is the first `rotated` values of each head, all `width` by default. The others stay where they are.
    """
    n = width if rotated is None else rotated
    rows = np.arange(heads * width, dtype=np.intp).reshape(heads, width)
    rows[:, :n] = rows[:, :n].reshape(heads, 2, n // 2).transpose(0, 2, 1).reshape(heads, n)
    order: npt.NDArray[np.intp] = rows.reshape(-1)
    return order
