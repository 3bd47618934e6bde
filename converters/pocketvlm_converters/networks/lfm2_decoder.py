"""A decoder of two kinds of layers as GGUF: attention, and short convolutions between gates, which keep a state."""

from __future__ import annotations

from dataclasses import replace

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.decoder import MOST_LAYERS, DecoderStyle, embeddings, head_width
from pocketvlm_converters.networks.rope import read_rope
from pocketvlm_converters.weights import Part, Value, Weight

_CONV, _ATTENTION = "conv", "full_attention"
_DEFAULTS = {  # transformers' class of such a configuration
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 65536,
    "max_position_embeddings": 128000,
}
_THETA = 1000000.0


def lfm2_decoder(config: Section, names: Names, head: Names, tied: bool, architecture: str) -> Part:
    """`config` is the text configuration, `names` the decoder's tensors, `head` holds `lm_head.weight`."""
    hidden, heads, vocabulary, context = (
        config.integer(key, _DEFAULTS[key])
        for key in ("hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")
    )
    kv_heads, inner, reach = (
        config.integer("num_key_value_heads", _DEFAULTS["num_key_value_heads"]),
        _inner(config),
        config.integer("conv_L_cache", 3, least=2),
    )
    config.require("conv_bias", False, False)
    width, kinds = head_width(config, DecoderStyle(architecture, defaults=_DEFAULTS)), _kinds(config)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"num_attention_heads {heads} is no multiple of it")
    if width * heads != hidden:
        raise config.wrong("head_dim", f"libllama takes it to be hidden_size / num_attention_heads, {hidden / heads:g}")
    rope = read_rope(config, width, _THETA)
    if rope.factors is not None or "rope.dimension_sections" in rope.metadata:
        raise config.wrong("rope_parameters", "libllama knows default and linear positions in such a decoder")

    weights: list[Weight] = []
    embedding, output = embeddings(names, head, tied, (vocabulary, hidden))
    weights.append(Weight("token_embd.weight", embedding))

    def norm(gguf: str, name: str, size: int) -> None:
        weights.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", (size,)), exact=True))

    def linear(gguf: str, name: str, shape: tuple[int, int]) -> None:
        weights.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape)))

    for layer, kind in enumerate(kinds):
        here, there = f"layers.{layer}.", f"blk.{layer}."
        norm(f"{there}attn_norm", f"{here}operator_norm", hidden)
        norm(f"{there}ffn_norm", f"{here}ffn_norm", hidden)
        if kind == _ATTENTION:
            norm(f"{there}attn_q_norm", f"{here}self_attn.q_layernorm", width)
            norm(f"{there}attn_k_norm", f"{here}self_attn.k_layernorm", width)
            linear(f"{there}attn_q", f"{here}self_attn.q_proj", (hidden, hidden))
            linear(f"{there}attn_k", f"{here}self_attn.k_proj", (kv_heads * width, hidden))
            linear(f"{there}attn_v", f"{here}self_attn.v_proj", (kv_heads * width, hidden))
            linear(f"{there}attn_output", f"{here}self_attn.out_proj", (hidden, hidden))
        else:
            linear(f"{there}shortconv.in_proj", f"{here}conv.in_proj", (3 * hidden, hidden))
            kernel = names.tensor(f"{here}conv.conv.weight", (hidden, 1, reach))
            # ggml convolves with kernels in float32 only.
            kernel = replace(kernel, data=kernel.data[:, 0])
            weights.append(Weight(f"{there}shortconv.conv.weight", kernel, exact=True))
            linear(f"{there}shortconv.out_proj", f"{here}conv.out_proj", (hidden, hidden))
        linear(f"{there}ffn_gate", f"{here}feed_forward.w1", (inner, hidden))
        linear(f"{there}ffn_up", f"{here}feed_forward.w3", (inner, hidden))
        linear(f"{there}ffn_down", f"{here}feed_forward.w2", (hidden, inner))
    norm("token_embd_norm", "embedding_norm", hidden)  # the last norm: libllama kept an early converter's mistake
    if output is not None:
        weights.append(Weight("output.weight", output))

    metadata: dict[str, Value] = {
        "block_count": len(kinds),
        "context_length": context,
        "embedding_length": hidden,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        # Without heads for keys a layer is a convolution.
        "attention.head_count_kv": [kv_heads if kind == _ATTENTION else 0 for kind in kinds],
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": config.number("norm_eps", 1e-5, positive=True),
        "shortconv.l_cache": reach,
        "vocab_size": vocabulary,
        **rope.metadata,
    }
    return Part(architecture, {f"{architecture}.{key}": value for key, value in metadata.items()}, tuple(weights))


def _inner(config: Section) -> int:
    """The MLP's width, which configurations give before it is adjusted."""
    inner = config.integer("block_ff_dim", config.integer("intermediate_size", _DEFAULTS["intermediate_size"]))
    if not config.flag("block_auto_adjust_ff_dim", True):
        return inner
    inner = int(config.number("block_ffn_dim_multiplier", 1.0, positive=True) * int(2 * inner / 3))
    multiple = config.integer("block_multiple_of", 256)
    return -(-inner // multiple) * multiple


def _kinds(config: Section) -> list[str]:
    """Of each layer: `layer_types`, or those in `full_attn_idxs` attend, or all."""
    layers = config.integer("num_hidden_layers", _DEFAULTS["num_hidden_layers"], most=MOST_LAYERS)
    kinds = config.values.get("layer_types")
    if kinds is None:
        attending = config.numbers("full_attn_idxs", [float(layer) for layer in range(layers)])
        return [_ATTENTION if layer in attending else _CONV for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_CONV, _ATTENTION) for kind in kinds):
        raise config.wrong("layer_types", f"{_CONV} or {_ATTENTION} is needed for each of {layers} layers")
    return kinds
