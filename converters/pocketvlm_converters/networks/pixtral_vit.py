"""Pixtral's vision transformer, built like a decoder, for pictures of any size, as GGUF and as ONNX.

It has RMS norms, gated MLPs and no biases. Positions are rotary, and rows and columns take frequencies in turn. Every
patch attends to the whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.decoder import rotary_order
from pocketvlm_converters.networks.feed_forward import refuse_square
from pocketvlm_converters.networks.sizes import layer_sizes
from pocketvlm_converters.onnx.feed_forward import Matrix, feed_forward
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.grid import Grid
from pocketvlm_converters.onnx.layers import add_norm, norm
from pocketvlm_converters.onnx.patches import Normalization, cut_patches, fold_normalization
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Value, Weight

_EPSILON = 1e-5  # configurations have no key for it
_THETA = 10000.0  # libmtmd has no key for it


@dataclass(frozen=True)
class PixtralViT:
    """Sizes of the encoder. A patch has `hidden` values, in `heads` heads."""

    hidden: int
    inner: int
    layers: int
    heads: int
    patch: int

    def metadata(self) -> dict[str, Value]:
        return {
            "clip.has_vision_encoder": True,
            "clip.use_silu": True,
            "clip.vision.patch_size": self.patch,
            **layer_sizes(self, _EPSILON),
        }

    def weights(self, names: Names) -> list[Weight]:
        """Return the weights. Patch convolution and norms stay float32, as in every encoder here.

        libmtmd rotates neighbours, so the rows of queries and keys are reordered.
        """
        hidden, inner, weights = self.hidden, self.inner, []
        rotary = rotary_order(self.heads, hidden // self.heads)

        def exact(gguf: str, name: str) -> None:
            weights.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", (hidden,)), exact=True))

        kernel = names.tensor("patch_conv.weight", (hidden, 3, self.patch, self.patch))
        weights.append(Weight("v.patch_embd.weight", kernel, exact=True))
        exact("v.pre_ln", "ln_pre")
        for layer in range(self.layers):
            source, target = f"transformer.layers.{layer}.", f"v.blk.{layer}."
            exact(f"{target}ln1", f"{source}attention_norm")
            exact(f"{target}ln2", f"{source}ffn_norm")
            for gguf, name, shape, order in (
                ("attn_q", "attention.q_proj", (hidden, hidden), rotary),
                ("attn_k", "attention.k_proj", (hidden, hidden), rotary),
                ("attn_v", "attention.v_proj", (hidden, hidden), None),
                ("attn_out", "attention.o_proj", (hidden, hidden), None),
                ("ffn_gate", "feed_forward.gate_proj", (inner, hidden), None),
                ("ffn_up", "feed_forward.up_proj", (inner, hidden), None),
                ("ffn_down", "feed_forward.down_proj", (hidden, inner), None),
            ):
                weights.append(Weight(f"{target}{gguf}.weight", names.tensor(f"{source}{name}.weight", shape), order))
        return weights

    def graph(self, graph: Graph, names: Names, pixels: Normalization, grid: Grid) -> str:
        """Add the encoder to `graph` and return its output, [tiles, patches, hidden], in the order of `grid`."""
        angles = (graph.integers(0), *grid.angles(self.hidden // self.heads, _THETA, alternating=True))
        square, up, down = (self.hidden, self.hidden), (self.inner, self.hidden), (self.hidden, self.inner)

        def scale(name: str) -> str:
            return graph.vector(names.tensor(f"{name}.weight", (self.hidden,)))

        def tensor(name: str, shape: tuple[int, int]) -> Tensor:
            return names.tensor(f"{name}.weight", shape)

        def linear(value: str, name: str, shape: tuple[int, int]) -> str:
            return graph.linear(value, tensor(name, shape))

        def activate(gate: str, value: str) -> str:
            return graph.one("Mul", graph.one("QuickGelu", gate, domain=MICROSOFT, alpha=1.0), value)  # SiLU

        value = cut_patches(graph, self.patch, grid.merge, grid.rows, grid.cols)
        kernel = names.tensor("patch_conv.weight", (self.hidden, 3, self.patch, self.patch))
        matrix, offset = fold_normalization(floats(kernel), pixels)
        value = graph.one("MatMul", value, graph.constant("patch_embedding", matrix))
        value = graph.one("Add", value, graph.constant("patch_offset", offset.astype(np.float32)))
        value = norm(graph, value, scale("ln_pre"), epsilon=_EPSILON)
        change = ""
        for layer in range(self.layers):
            prefix = f"transformer.layers.{layer}."
            if change:
                normed, value = add_norm(graph, value, change, scale(f"{prefix}attention_norm"), epsilon=_EPSILON)
            else:
                normed = norm(graph, value, scale(f"{prefix}attention_norm"), epsilon=_EPSILON)
            queries, keys, values = (linear(normed, f"{prefix}attention.{part}_proj", square) for part in "qkv")
            queries, keys = (
                graph.one("RotaryEmbedding", part, *angles, domain=MICROSOFT, num_heads=self.heads)
                for part in (queries, keys)
            )
            mixed = graph.one("MultiHeadAttention", queries, keys, values, domain=MICROSOFT, num_heads=self.heads)
            mixed = linear(mixed, f"{prefix}attention.o_proj", square)
            normed, value = add_norm(graph, value, mixed, scale(f"{prefix}ffn_norm"), epsilon=_EPSILON)
            first = [Matrix(normed, tensor(f"{prefix}feed_forward.{part}_proj", up)) for part in ("gate", "up")]
            change = feed_forward(graph, first, activate, tensor(f"{prefix}feed_forward.down_proj", down))
        return graph.one("Add", value, change)


def pixtral_vit(config: Section, **defaults: int) -> PixtralViT:
    """Read a vision configuration; `defaults` are those of the family's configuration class.

    Raises CheckpointError for values that differ from what libmtmd has fixed.
    """
    config.require("num_channels", 3, 3)
    config.require("hidden_act", "silu", "gelu")
    config.require("rope_theta", _THETA, _THETA)
    rope = config.section("rope_parameters")
    rope.require("rope_theta", _THETA, _THETA)
    if rope.text("rope_type", "axial") not in ("axial", "default"):  # older files call it default
        raise rope.wrong("rope_type", "only axial is supported")
    encoder = PixtralViT(
        hidden=config.integer("hidden_size", defaults["hidden_size"]),
        inner=config.integer("intermediate_size", defaults["intermediate_size"]),
        layers=config.integer("num_hidden_layers", defaults["num_hidden_layers"]),
        heads=config.integer("num_attention_heads", defaults["num_attention_heads"]),
        patch=config.integer("patch_size", defaults["patch_size"]),
    )
    if encoder.hidden % (4 * encoder.heads):
        raise config.wrong("num_attention_heads", f"hidden_size {encoder.hidden} must be a multiple of 4 times it")
    width = encoder.hidden // encoder.heads
    config.require("head_dim", width, width)
    refuse_square(config, encoder.inner, encoder.hidden)
    return encoder
