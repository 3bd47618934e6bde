"""A Llama decoder as GGUF: hyperparameters, tensor names, rotary order. Shared by every family that has one."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint import Section, Tensor
from pocketvlm_converters.family import Names, Part, Value, Weight


def llama_decoder(config: Section, names: Names, head: Names, tied: bool) -> Part:
    """`config` is the text configuration, with transformers' LlamaConfig defaults; `names` the decoder's tensors.

    `head` holds `lm_head.weight`. With `tied`, the head is written only if the checkpoint has one that differs, as
    transformers does. Raises CheckpointError for what libllama's `llama` graph cannot compute.
    """
    config.require("model_type", "llama", "llama")
    config.require("hidden_act", "silu", "silu")
    hidden = config.integer("hidden_size", 4096)
    inner = config.integer("intermediate_size", 11008)
    layers = config.integer("num_hidden_layers", 32)
    heads = config.integer("num_attention_heads", 32)
    kv_heads = config.integer("num_key_value_heads", heads)
    width = config.integer("head_dim", hidden // heads)
    vocabulary = config.integer("vocab_size", 32000)
    queries, keys = heads * width, kv_heads * width

    weights: list[Weight] = []
    embedding, output = _embeddings(names, head, tied, (vocabulary, hidden))
    weights.append(Weight("token_embd.weight", embedding))
    rope, factors = _rope(config, width)
    if factors is not None:
        weights.append(Weight("rope_freqs.weight", Tensor("rope_freqs", factors), exact=True))
    for layer in range(layers):
        here, there = f"layers.{layer}.", f"blk.{layer}."

        def linear(
            gguf: str,
            name: str,
            shape: tuple[int, int],
            bias: bool,
            rotary_heads: int = 0,
            at: str = here,
            to: str = there,
        ) -> None:
            order = _rotary_order(rotary_heads, width) if rotary_heads else None
            weights.append(Weight(f"{to}{gguf}.weight", names.tensor(f"{at}{name}.weight", shape), order))
            if bias:
                flat = names.tensor(f"{at}{name}.bias", shape[:1])
                if order is not None:
                    flat = Tensor(flat.name, flat.data[order], flat.path)
                weights.append(Weight(f"{to}{gguf}.bias", flat, exact=True))

        attention_bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
        weights.append(
            Weight(f"{there}attn_norm.weight", names.tensor(f"{here}input_layernorm.weight", (hidden,)), exact=True)
        )
        linear("attn_q", "self_attn.q_proj", (queries, hidden), attention_bias, heads)
        linear("attn_k", "self_attn.k_proj", (keys, hidden), attention_bias, kv_heads)
        linear("attn_v", "self_attn.v_proj", (keys, hidden), attention_bias)
        linear("attn_output", "self_attn.o_proj", (hidden, queries), attention_bias)
        weights.append(
            Weight(
                f"{there}ffn_norm.weight", names.tensor(f"{here}post_attention_layernorm.weight", (hidden,)), exact=True
            )
        )
        linear("ffn_gate", "mlp.gate_proj", (inner, hidden), mlp_bias)
        linear("ffn_up", "mlp.up_proj", (inner, hidden), mlp_bias)
        linear("ffn_down", "mlp.down_proj", (hidden, inner), mlp_bias)
    weights.append(Weight("output_norm.weight", names.tensor("norm.weight", (hidden,)), exact=True))
    if output is not None:
        weights.append(Weight("output.weight", output))

    metadata: dict[str, Value] = {
        "llama.block_count": layers,
        "llama.context_length": config.integer("max_position_embeddings", 2048),
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": inner,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.key_length": width,
        "llama.attention.value_length": width,
        "llama.attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-6),
        "llama.vocab_size": vocabulary,
        "llama.rope.dimension_count": width,
        **rope,
    }
    return Part("llama", metadata, tuple(weights))


def _embeddings(names: Names, head: Names, tied: bool, shape: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
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


def _rotary_order(heads: int, width: int) -> npt.NDArray[np.intp]:
    """Rows in the order of libllama's `llama` graph, which rotates neighbours (0, 1), (2, 3), ...

    transformers rotates a head's first half with its second: (0, width / 2), (1, width / 2 + 1), ...
    """
    rows = np.arange(heads * width, dtype=np.intp).reshape(heads, 2, width // 2)
    order: npt.NDArray[np.intp] = rows.transpose(0, 2, 1).reshape(-1)
    return order


def _rope(config: Section, width: int) -> tuple[dict[str, Value], npt.NDArray[np.float32] | None]:
    """GGUF keys, and frequency factors [width / 2] where the scaling has them.

    Transformers 5 writes `rope_parameters`; before that there were `rope_theta` and `rope_scaling`.
    """
    rope = config.section("rope_parameters")
    if not rope.values:
        rope = config.section("rope_scaling")
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    rope.require("partial_rotary_factor", 1.0, 1.0)
    kind = rope.text("rope_type", rope.text("type", "default"))
    metadata: dict[str, Value] = {"llama.rope.freq_base": theta}
    if kind == "default":
        return metadata, None
    if kind == "linear":
        return metadata | {
            "llama.rope.scaling.type": "linear",
            "llama.rope.scaling.factor": rope.number("factor"),
        }, None
    if kind == "llama3":
        return metadata, _llama3_factors(rope, theta, width)
    raise CheckpointError(f"rope scaling {kind!r} is not known; default, linear and llama3 are", config.path)


def _llama3_factors(rope: Section, theta: float, width: int) -> npt.NDArray[np.float32]:
    """By how much each frequency is divided: long waves by `factor`, short ones not at all, smoothly between."""
    factor, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = rope.number("original_max_position_embeddings")
    waves = 2 * math.pi * theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
