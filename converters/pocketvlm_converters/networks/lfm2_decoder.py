"""LFM2's decoder as GGUF. Its layers are attention, or short gated convolutions, which keep a state."""

from __future__ import annotations

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.decoder import (
    MAX_LAYERS,
    DecoderStyle,
    decoder_part,
    embeddings,
    head_width,
    size_metadata,
)
from pocketvlm_converters.networks.rope import read_rope
from pocketvlm_converters.weights import Part, Value, Weight

_CONV, _ATTENTION = "conv", "full_attention"
_DEFAULTS = {  # transformers' Lfm2Config
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
    """Return the decoder's weights and metadata. Raises CheckpointError.

    `config` is the text configuration, `names` has the decoder's tensors, `head` has `lm_head.weight`. `tied` is
    explained at `decoder`.
    """
    hidden, heads, vocabulary, context = (
        config.integer(key, _DEFAULTS[key])
        for key in ("hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")
    )
    kv_heads, inner, kernel_width = (
        config.integer("num_key_value_heads", _DEFAULTS["num_key_value_heads"]),
        _inner(config),
        config.integer("conv_L_cache", 3, least=2),
    )
    config.require("conv_bias", False, False)
    width, kinds = head_width(config, DecoderStyle(architecture, defaults=_DEFAULTS)), _kinds(config)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"num_attention_heads {heads} is not a multiple of it")
    if width * heads != hidden:
        raise config.wrong("head_dim", f"libllama expects hidden_size / num_attention_heads, {hidden / heads:g}")
    rope = read_rope(config, width, _THETA)
    if rope.factors is not None or "rope.dimension_sections" in rope.metadata:
        raise config.wrong(
            "rope_parameters", "libllama supports only default and linear positions in this architecture"
        )

    weights: list[Weight] = []
    embedding, output = embeddings(names, head, tied, (vocabulary, hidden))
    weights.append(Weight("token_embd.weight", embedding))

    def norm(gguf: str, name: str, size: int) -> None:
        weights.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", (size,)), exact=True))

    def linear(gguf: str, name: str, shape: tuple[int, int]) -> None:
        weights.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape)))

    for layer, kind in enumerate(kinds):
        source, target = f"layers.{layer}.", f"blk.{layer}."
        norm(f"{target}attn_norm", f"{source}operator_norm", hidden)
        norm(f"{target}ffn_norm", f"{source}ffn_norm", hidden)
        if kind == _ATTENTION:
            norm(f"{target}attn_q_norm", f"{source}self_attn.q_layernorm", width)
            norm(f"{target}attn_k_norm", f"{source}self_attn.k_layernorm", width)
            linear(f"{target}attn_q", f"{source}self_attn.q_proj", (hidden, hidden))
            linear(f"{target}attn_k", f"{source}self_attn.k_proj", (kv_heads * width, hidden))
            linear(f"{target}attn_v", f"{source}self_attn.v_proj", (kv_heads * width, hidden))
            linear(f"{target}attn_output", f"{source}self_attn.out_proj", (hidden, hidden))
        else:
            linear(f"{target}shortconv.in_proj", f"{source}conv.in_proj", (3 * hidden, hidden))
            kernel = names.tensor(f"{source}conv.conv.weight", (hidden, 1, kernel_width))
            # ggml supports only float32 kernels in this convolution.
            kernel = kernel[:, 0]
            weights.append(Weight(f"{target}shortconv.conv.weight", kernel, exact=True))
            linear(f"{target}shortconv.out_proj", f"{source}conv.out_proj", (hidden, hidden))
        linear(f"{target}ffn_gate", f"{source}feed_forward.w1", (inner, hidden))
        linear(f"{target}ffn_up", f"{source}feed_forward.w3", (inner, hidden))
        linear(f"{target}ffn_down", f"{source}feed_forward.w2", (hidden, inner))
    # This is the last norm; libllama kept the name that an early converter gave it.
    norm("token_embd_norm", "embedding_norm", hidden)
    if output is not None:
        weights.append(Weight("output.weight", output))

    by_layer = [kv_heads if kind == _ATTENTION else 0 for kind in kinds]  # 0 marks a layer of convolution
    metadata: dict[str, Value] = {
        **size_metadata(len(kinds), context, hidden, inner, heads, by_layer, width),
        "attention.layer_norm_rms_epsilon": config.number("norm_eps", 1e-5, positive=True),
        "shortconv.l_cache": kernel_width,
        "vocab_size": vocabulary,
        **rope.metadata,
    }
    return decoder_part(architecture, metadata, weights)


def _inner(config: Section) -> int:
    """Return the MLP's width, adjusted as transformers does it: configurations hold the value before that."""
    inner = config.integer("block_ff_dim", config.integer("intermediate_size", _DEFAULTS["intermediate_size"]))
    if not config.flag("block_auto_adjust_ff_dim", True):
        return inner
    inner = int(config.number("block_ffn_dim_multiplier", 1.0, positive=True) * int(2 * inner / 3))
    multiple = config.integer("block_multiple_of", 256)
    return -(-inner // multiple) * multiple


def _kinds(config: Section) -> list[str]:
    """Return the kind of each layer: from `layer_types`, else from `full_attn_idxs`, else attention for all."""
    layers = config.integer("num_hidden_layers", _DEFAULTS["num_hidden_layers"], most=MAX_LAYERS)
    kinds = config.values.get("layer_types")
    if kinds is None:
        attention = config.numbers("full_attn_idxs", [float(layer) for layer in range(layers)])
        return [_ATTENTION if layer in attention else _CONV for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_CONV, _ATTENTION) for kind in kinds):
        raise config.wrong("layer_types", f"expected a list of {layers} items, each {_CONV} or {_ATTENTION}")
    return kinds
