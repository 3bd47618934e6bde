"""A hybrid decoder as GGUF: gated delta nets (arXiv 2412.06464), which keep a state, and layers of gated attention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.decoder import (
    MAX_LAYERS,
    DecoderStyle,
    decoder_part,
    embeddings,
    head_width,
    size_metadata,
)
from pocketvlm_converters.networks.rope import Rope
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Part, Value, Weight

_LINEAR, _FULL = "linear_attention", "full_attention"
_INTERVAL = 4  # every fourth layer attends to all positions, where the configuration does not list the layers
_EPSILON = 1e-6  # of all norms; transformers has fixed it for queries and keys of a delta net, libllama has one for all
_MAX_HEADS = 1 << 12  # of a delta net; models have up to 64
_MAX_HEAD = 1 << 10  # values of such a head; models have 128
_MAX_KERNEL = 16  # positions; models have 4


@dataclass(frozen=True)
class _DeltaNet:
    """Sizes of a layer that keeps a state: a matrix of `head` x `head` values for each of its value heads.

    `kernel` is the number of positions that its convolution sees.
    """

    key_heads: int
    value_heads: int
    head: int
    kernel: int

    @property
    def keys(self) -> int:
        return self.key_heads * self.head

    @property
    def values(self) -> int:
        return self.value_heads * self.head

    def tiled(self, width: int = 1) -> npt.NDArray[np.intp]:
        """Return libllama's order of `width` rows for each value head.

        The checkpoint groups the value heads by their key head; libllama repeats the key heads (0, 1, ..., 0, 1, ...).
        """
        rows = np.arange(self.value_heads * width, dtype=np.intp).reshape(self.key_heads, -1, width)
        order: npt.NDArray[np.intp] = rows.transpose(1, 0, 2).reshape(-1)
        return order


def gated_delta_decoder(
    config: Section, names: Names, head: Names, tied: bool, style: DecoderStyle, rope: Rope, rotated: int
) -> Part:
    """Return the decoder's weights and metadata. Raises CheckpointError.

    `config` is the text configuration, `names` has the decoder's tensors, `head` has `lm_head.weight`, `rotated` is the
    number of values of a head that `rope` rotates. `style` names the architecture and the configuration's defaults, all
    of them. `tied` is explained at `decoder`.
    """
    hidden, inner, heads, kv_heads, vocabulary, context = (
        config.integer(key, style.defaults[key])
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "max_position_embeddings",
        )
    )
    for key, value in (("hidden_act", "silu"), ("attention_bias", False), ("attn_output_gate", True)):
        config.require(key, value, value)
    config.require("rms_norm_eps", _EPSILON, _EPSILON)
    width, net, kinds = head_width(config, style), _delta_net(config, style), _kinds(config, style)
    if heads % kv_heads:
        raise config.wrong("num_key_value_heads", f"num_attention_heads {heads} is not a multiple of it")

    weights: list[Weight] = []
    embedding, output = embeddings(names, head, tied, (vocabulary, hidden))
    weights.append(Weight("token_embd.weight", embedding))

    def vector(gguf: str, tensor: Tensor, order: npt.NDArray[np.intp] | None = None) -> None:
        weights.append(Weight(gguf, tensor if order is None else tensor[order], exact=True))

    def norm(gguf: str, name: str, size: int) -> None:
        tensor = names.tensor(f"{name}.weight", (size,))
        vector(f"{gguf}.weight", replace(tensor, data=floats(tensor) + np.float32(1)))  # it is stored as the rest

    def linear(gguf: str, name: str, shape: tuple[int, int], order: npt.NDArray[np.intp] | None = None) -> None:
        weights.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape), order))

    def attention(target: str, source: str) -> None:
        linear(f"{target}attn_q", f"{source}q_proj", (2 * heads * width, hidden))  # of each head a gate as well
        linear(f"{target}attn_k", f"{source}k_proj", (kv_heads * width, hidden))
        linear(f"{target}attn_v", f"{source}v_proj", (kv_heads * width, hidden))
        linear(f"{target}attn_output", f"{source}o_proj", (hidden, heads * width))
        norm(f"{target}attn_q_norm", f"{source}q_norm", width)
        norm(f"{target}attn_k_norm", f"{source}k_norm", width)

    def delta_net(target: str, source: str) -> None:
        channels = 2 * net.keys + net.values
        tensor = names.tensor(f"{source}conv1d.weight", (channels, 1, net.kernel))
        # The sizes are checked by now, which a configuration can set to anything.
        by_head, by_value = net.tiled(), net.tiled(net.head)
        mixed = np.concatenate([np.arange(2 * net.keys), 2 * net.keys + by_value])
        vector(f"{target}ssm_conv1d.weight", tensor[:, 0], mixed)
        linear(f"{target}attn_qkv", f"{source}in_proj_qkv", (channels, hidden), mixed)
        linear(f"{target}attn_gate", f"{source}in_proj_z", (net.values, hidden), by_value)
        linear(f"{target}ssm_beta", f"{source}in_proj_b", (net.value_heads, hidden), by_head)
        linear(f"{target}ssm_alpha", f"{source}in_proj_a", (net.value_heads, hidden), by_head)
        vector(f"{target}ssm_dt.bias", names.tensor(f"{source}dt_bias", (net.value_heads,)), by_head)
        tensor = names.tensor(f"{source}A_log", (net.value_heads,))
        # In float64, because the last bit of float32's exponential differs between processors.
        decay = -np.exp(floats(tensor).astype(np.float64)).astype(np.float32)
        vector(f"{target}ssm_a", replace(tensor, data=decay), by_head)
        vector(f"{target}ssm_norm.weight", names.tensor(f"{source}norm.weight", (net.head,)))
        tensor = names.tensor(f"{source}out_proj.weight", (hidden, net.values))
        weights.append(Weight(f"{target}ssm_out.weight", tensor, columns=by_value))

    for layer, kind in enumerate(kinds):
        source, target = f"layers.{layer}.", f"blk.{layer}."
        norm(f"{target}attn_norm", f"{source}input_layernorm", hidden)
        norm(f"{target}post_attention_norm", f"{source}post_attention_layernorm", hidden)
        if kind == _FULL:
            attention(target, f"{source}self_attn.")
        else:
            delta_net(target, f"{source}linear_attn.")
        linear(f"{target}ffn_gate", f"{source}mlp.gate_proj", (inner, hidden))
        linear(f"{target}ffn_up", f"{source}mlp.up_proj", (inner, hidden))
        linear(f"{target}ffn_down", f"{source}mlp.down_proj", (hidden, inner))
    norm("output_norm", "norm", hidden)
    if output is not None:
        weights.append(Weight("output.weight", output))

    metadata: dict[str, Value] = {
        **size_metadata(len(kinds), context, hidden, inner, heads, kv_heads, width),
        "attention.layer_norm_rms_epsilon": _EPSILON,
        **_pattern(kinds),
        "ssm.conv_kernel": net.kernel,
        "ssm.state_size": net.head,
        "ssm.group_count": net.key_heads,
        "ssm.time_step_rank": net.value_heads,
        "ssm.inner_size": net.values,
        "vocab_size": vocabulary,
        "rope.dimension_count": rotated,
        **rope.metadata,
    }
    return decoder_part(style.architecture, metadata, weights)


def _delta_net(config: Section, style: DecoderStyle) -> _DeltaNet:
    def integer(key: str, least: int, most: int) -> int:
        return config.integer(key, style.defaults[key], least=least, most=most)

    keys, values = (integer(f"linear_num_{kind}_heads", 1, _MAX_HEADS) for kind in ("key", "value"))
    key, value = (integer(f"linear_{kind}_head_dim", 1, _MAX_HEAD) for kind in ("key", "value"))
    if key != value:
        raise config.wrong("linear_value_head_dim", f"libllama supports only that of keys, {key}")
    if values % keys:
        raise config.wrong("linear_num_value_heads", f"it must be a multiple of linear_num_key_heads, {keys}")
    return _DeltaNet(keys, values, key, integer("linear_conv_kernel_dim", 2, _MAX_KERNEL))


def _kinds(config: Section, style: DecoderStyle) -> list[str]:
    """Return the kind of each layer: from `layer_types`, else from `full_attention_interval`."""
    layers = config.integer("num_hidden_layers", style.defaults["num_hidden_layers"], most=MAX_LAYERS)
    interval = config.integer("full_attention_interval", _INTERVAL)
    key, kinds = "layer_types", config.values.get("layer_types")
    if kinds is None:
        key, kinds = "full_attention_interval", _every(interval, layers)
    elif not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (_LINEAR, _FULL) for kind in kinds):
        raise config.wrong(key, f"expected a list of {layers} items, each {_LINEAR} or {_FULL}")
    if len(set(kinds)) < 2:  # libllama makes a cache for each kind, and aborts where one has no layer
        raise config.wrong(key, f"expected layers of both kinds, {_LINEAR} and {_FULL}, among the {layers}")
    return kinds


def _every(interval: int, layers: int) -> list[str]:
    return [_LINEAR if (layer + 1) % interval else _FULL for layer in range(layers)]


def _pattern(kinds: list[str]) -> dict[str, Value]:
    """Return the keys for the kinds. Older readers know the interval alone, which cannot describe every pattern."""
    keys: dict[str, Value] = {"attention.recurrent_layers": [kind == _LINEAR for kind in kinds]}
    interval = kinds.index(_FULL) + 1
    if kinds == _every(interval, len(kinds)):
        keys["full_attention_interval"] = interval
    return keys
