"""InternViT, a vision transformer with a class token and learned scales of its residual branches, as GGUF and as ONNX.

Layer scale is arXiv 2103.17239, norms of queries and keys are arXiv 2302.05442. No norm follows the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.encoder_activations import LOWEST_GELU
from pocketvlm_converters.networks.sizes import layer_sizes
from pocketvlm_converters.onnx.feed_forward import Matrix, feed_forward
from pocketvlm_converters.onnx.graph import INPUT, MICROSOFT, Graph
from pocketvlm_converters.onnx.layers import add_norm, norm
from pocketvlm_converters.onnx.patches import Normalization, cut_patches, fold_normalization
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Value, Weight


@dataclass(frozen=True)
class InternViT:
    """Sizes of the encoder. `side` is the number of patches along one edge of a tile.

    The activation is GELU; libmtmd only has an approximation of it (arXiv 1606.08415), off by at most 0.0005.
    With `rms`, norms divide by the root of the mean square and have no bias. With `biased`, queries, keys and values
    have biases. With `normed`, queries and keys each have a norm of the same kind, over all heads together.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    image: int
    patch: int
    epsilon: float
    rms: bool = False
    biased: bool = True
    normed: bool = False

    @property
    def side(self) -> int:
        return self.image // self.patch

    def metadata(self) -> dict[str, Value]:
        return {
            "clip.has_vision_encoder": True,
            "clip.use_gelu": True,
            "clip.vision.image_size": self.image,
            "clip.vision.patch_size": self.patch,
            **layer_sizes(self, self.epsilon),
        }

    def weights(self, names: Names) -> list[Weight]:
        """Return the weights; everything but matrices stays float32, as in every encoder here."""
        hidden, inner, weights = self.hidden, self.inner, []

        def exact(gguf: str, name: str, shape: tuple[int, ...]) -> None:
            weights.append(Weight(gguf, names.tensor(name, shape), exact=True))

        def linear(gguf: str, name: str, shape: tuple[int, int], biased: bool = True) -> None:
            weights.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape)))
            if biased:
                exact(f"{gguf}.bias", f"{name}.bias", shape[:1])

        weights.append(Weight("v.class_embd", self._class_token(names), exact=True))
        weights.append(Weight("v.position_embd.weight", self._position_table(names), exact=True))
        patches = "embeddings.patch_embeddings.projection"
        exact("v.patch_embd.weight", f"{patches}.weight", (hidden, 3, self.patch, self.patch))
        exact("v.patch_embd.bias", f"{patches}.bias", (hidden,))
        for layer in range(self.layers):
            source, target = f"encoder.layer.{layer}.", f"v.blk.{layer}."
            for gguf, name in (("ln1", "layernorm_before"), ("ln2", "layernorm_after")):
                for kind in ("weight",) if self.rms else ("weight", "bias"):
                    exact(f"{target}{gguf}.{kind}", f"{source}{name}.{kind}", (hidden,))
            for gguf, name in (("ls1", "lambda_1"), ("ls2", "lambda_2")):
                exact(f"{target}{gguf}.weight", f"{source}{name}", (hidden,))
            for x in "qkv":
                linear(f"{target}attn_{x}", f"{source}attention.{x}_proj", (hidden, hidden), self.biased)
            for x in "qk" if self.normed else "":
                exact(f"{target}attn_{x}_norm.weight", f"{source}attention.{x}_norm.weight", (hidden,))
            linear(f"{target}attn_out", f"{source}attention.projection_layer", (hidden, hidden))
            linear(f"{target}ffn_up", f"{source}mlp.fc1", (inner, hidden))
            linear(f"{target}ffn_down", f"{source}mlp.fc2", (hidden, inner))
        return weights

    def graph(self, graph: Graph, names: Names, pixels: Normalization, group: int) -> str:
        """Add the encoder to `graph` and return its output, [tiles, side * side, hidden], without the class token.

        Patches are ordered by squares of `group` x `group`, as `cut_patches` leaves them. The position table has the
        same order, so attention gives the same result.
        """

        def scales(name: str) -> list[str]:
            kinds = ("weight",) if self.rms else ("weight", "bias")
            return [graph.vector(names.tensor(f"{name}.{kind}", (self.hidden,))) for kind in kinds]

        def tensors(name: str, shape: tuple[int, int], biased: bool = True) -> tuple[Tensor, Tensor | None]:
            bias = names.tensor(f"{name}.bias", shape[:1]) if biased else None
            return names.tensor(f"{name}.weight", shape), bias

        def linear(value: str, name: str, shape: tuple[int, int], biased: bool = True) -> str:
            return graph.linear(value, *tensors(name, shape, biased))

        def gelu(value: str) -> str:
            return graph.one("Gelu", value, domain=MICROSOFT)

        def scaled(value: str, name: str) -> str:
            return graph.one("Mul", value, graph.vector(names.tensor(name, (self.hidden,))))

        square, up, down = (self.hidden, self.hidden), (self.inner, self.hidden), (self.hidden, self.inner)
        value = self._embed(graph, names, pixels, group)
        normed = norm(graph, value, *scales("encoder.layer.0.layernorm_before"), epsilon=self.epsilon)
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}."
            queries, keys, values = (linear(normed, f"{prefix}attention.{x}_proj", square, self.biased) for x in "qkv")
            if self.normed:
                queries, keys = (
                    norm(graph, x, *scales(f"{prefix}attention.{name}"), epsilon=self.epsilon)
                    for x, name in ((queries, "q_norm"), (keys, "k_norm"))
                )
            mixed = graph.one("MultiHeadAttention", queries, keys, values, domain=MICROSOFT, num_heads=self.heads)
            mixed = scaled(linear(mixed, f"{prefix}attention.projection_layer", square), f"{prefix}lambda_1")
            normed, value = add_norm(graph, value, mixed, *scales(f"{prefix}layernorm_after"), epsilon=self.epsilon)
            first = Matrix(normed, *tensors(f"{prefix}mlp.fc1", up))
            second = tensors(f"{prefix}mlp.fc2", down)
            inner = feed_forward(graph, [first], gelu, *second, lowest=LOWEST_GELU)
            inner = scaled(inner, f"{prefix}lambda_2")
            if layer + 1 < self.layers:
                following = scales(f"encoder.layer.{layer + 1}.layernorm_before")
                normed, value = add_norm(graph, value, inner, *following, epsilon=self.epsilon)
            else:
                value = graph.one("Add", value, inner)
        return graph.one("Slice", value, graph.integers(0), graph.integers(self.side**2), graph.integers(1))

    def _embed(self, graph: Graph, names: Names, pixels: Normalization, group: int) -> str:
        """Return the patches, then the class token, each with its position: [tiles, side * side + 1, hidden]."""
        outer = self.side // group
        shape = (self.hidden, 3, self.patch, self.patch)
        patches = "embeddings.patch_embeddings.projection"
        matrix, offset = fold_normalization(floats(names.tensor(f"{patches}.weight", shape)), pixels)
        offset += floats(names.tensor(f"{patches}.bias", shape[:1]))
        positions = floats(self._position_table(names))
        table = (positions[1:] + offset).reshape(outer, group, outer, group, self.hidden).transpose(0, 2, 1, 3, 4)
        token = floats(self._class_token(names)) + positions[0]

        value = cut_patches(graph, self.patch, group, outer, outer)
        value = graph.one("MatMul", value, graph.constant("patch_embedding", matrix))
        table = table.reshape(1, -1, self.hidden).astype(np.float32)
        value = graph.one("Add", value, graph.constant("position_embedding", table))
        tiles = graph.one("Shape", INPUT, start=0, end=1)
        first = graph.constant("class_embedding", token.reshape(1, 1, -1))
        first = graph.one("Expand", first, graph.extents(tiles, 1, self.hidden))
        return graph.one("Concat", value, first, axis=1)

    def _class_token(self, names: Names) -> Tensor:
        """Return the class token, [hidden]."""
        token = names.tensor("embeddings.cls_token", (1, 1, self.hidden))
        return token.view(lambda data: data.reshape(-1))

    def _position_table(self, names: Names) -> Tensor:
        """Return the position table, [1 + side * side, hidden]; the class token's row is the first."""
        table = names.tensor("embeddings.position_embeddings", (1, 1 + self.side**2, self.hidden))
        return table[0]
