"""A SigLIP-style vision transformer, as GGUF and as ONNX. Shared by every family that has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.activations import Activation, read_activation
from pocketvlm_converters.networks.feed_forward import refuse_square
from pocketvlm_converters.networks.sizes import layer_sizes
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.layers import add_norm
from pocketvlm_converters.onnx.patches import Normalization, cut, folded
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Value, Weight


@dataclass(frozen=True)
class SigLIP:
    """Sizes of the encoder. `side` is the number of patches along one edge of a tile.

    Without `normed`, what follows takes the output of the last of `layers`, and there is no norm behind it.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    image: int
    patch: int
    epsilon: float
    activation: Activation
    normed: bool = True

    @property
    def side(self) -> int:
        return self.image // self.patch

    def metadata(self) -> dict[str, Value]:
        return {
            "clip.has_vision_encoder": True,
            "clip.vision.image_size": self.image,
            "clip.vision.patch_size": self.patch,
            **layer_sizes(self, self.epsilon),
            **self.activation.keys,
        }

    def weights(self, names: Names) -> list[Weight]:
        """Patch convolution, position table, norms and biases stay float32: quantized, they spoil what follows."""
        hidden, inner = self.hidden, self.inner
        found = [Weight(gguf, tensor, exact=True) for gguf, tensor in self.first(names).items()]

        def exact(gguf: str, name: str, shape: tuple[int, ...]) -> None:
            found.append(Weight(gguf, names.tensor(name, shape), exact=True))

        def linear(gguf: str, name: str, shape: tuple[int, int]) -> None:
            found.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape)))
            exact(f"{gguf}.bias", f"{name}.bias", shape[:1])

        for layer in range(self.layers):
            here, there = f"encoder.layers.{layer}.", f"v.blk.{layer}."
            for gguf, name in (("ln1", "layer_norm1"), ("ln2", "layer_norm2")):
                exact(f"{there}{gguf}.weight", f"{here}{name}.weight", (hidden,))
                exact(f"{there}{gguf}.bias", f"{here}{name}.bias", (hidden,))
            for gguf, name in (
                ("attn_q", "q_proj"),
                ("attn_k", "k_proj"),
                ("attn_v", "v_proj"),
                ("attn_out", "out_proj"),
            ):
                linear(f"{there}{gguf}", f"{here}self_attn.{name}", (hidden, hidden))
            linear(f"{there}ffn_up", f"{here}mlp.fc1", (inner, hidden))
            linear(f"{there}ffn_down", f"{here}mlp.fc2", (hidden, inner))
        if self.normed:
            exact("v.post_ln.weight", "post_layernorm.weight", (hidden,))
            exact("v.post_ln.bias", "post_layernorm.bias", (hidden,))
        return found

    def first(self, names: Names) -> dict[str, Tensor]:
        """What comes before the layers, by the names of GGUF."""
        return {
            "v.patch_embd.weight": self.kernel(names),
            "v.patch_embd.bias": names.tensor("embeddings.patch_embedding.bias", (self.hidden,)),
            "v.position_embd.weight": names.tensor("embeddings.position_embedding.weight", (self.side**2, self.hidden)),
        }

    def graph(self, graph: Graph, names: Names, pixels: Normalization, group: int) -> str:
        """Add the encoder to `graph`; its output [tiles, side * side, hidden], after the last norm where it has one.

        Patches come in squares of `group` x `group`, as `cut` says: attention does not mind their order as long as
        the position table has the same.
        """
        value = self.embedded(graph, names, pixels, group)

        def norm(name: str) -> tuple[str, str]:
            return self.norm(graph, names, name)

        def linear(value: str, name: str, shape: tuple[int, int], sensitive: bool = False) -> str:
            bias = names.tensor(f"{name}.bias", shape[:1])
            return graph.linear(value, names.tensor(f"{name}.weight", shape), bias, sensitive)

        square, up, down = (self.hidden, self.hidden), (self.inner, self.hidden), (self.hidden, self.inner)
        scale, shift = norm("encoder.layers.0.layer_norm1")
        normed = graph.one("LayerNormalization", value, scale, shift, epsilon=self.epsilon)
        for layer in range(self.layers):
            at = f"encoder.layers.{layer}."
            queries, keys, values = (linear(normed, f"{at}self_attn.{x}_proj", square) for x in "qkv")
            mixed = graph.one("MultiHeadAttention", queries, keys, values, domain=MICROSOFT, num_heads=self.heads)
            mixed = linear(mixed, f"{at}self_attn.out_proj", square)
            normed, value = add_norm(graph, value, mixed, *norm(f"{at}layer_norm2"), epsilon=self.epsilon)
            inner = linear(normed, f"{at}mlp.fc1", up)
            inner = self.activation.add(graph, inner)
            # Trained activations have outliers here: 8 bits for them, or for their weights, cost most of int8's loss.
            inner = linear(inner, f"{at}mlp.fc2", down, sensitive=graph.kind == "int8")
            last = layer + 1 == self.layers
            if last and not self.normed:
                return graph.one("Add", value, inner)
            following = "post_layernorm" if last else f"encoder.layers.{layer + 1}.layer_norm1"
            normed, value = add_norm(graph, value, inner, *norm(following), epsilon=self.epsilon, keep=not last)
        return normed

    def norm(self, graph: Graph, names: Names, name: str) -> tuple[str, str]:
        """Its scale and shift."""
        weight, bias = (names.tensor(f"{name}.{part}", (self.hidden,)) for part in ("weight", "bias"))
        return graph.vector(weight), graph.vector(bias)

    def kernel(self, names: Names) -> Tensor:
        """The patch convolution, [hidden, 3, patch, patch]."""
        return names.tensor("embeddings.patch_embedding.weight", (self.hidden, 3, self.patch, self.patch))

    def embedded(self, graph: Graph, names: Names, pixels: Normalization, group: int) -> str:
        """Patches and their positions, [tiles, side * side, hidden]: what the first layer gets."""
        outer = self.side // group
        value, offset = self.convolved(graph, names, pixels, group)
        table = self.positions(names) + offset
        table = table.reshape(outer, group, outer, group, self.hidden).transpose(0, 2, 1, 3, 4)
        table = table.reshape(1, -1, self.hidden).astype(np.float32)
        return graph.one("Add", value, graph.constant("position_embedding", table))

    def convolved(
        self, graph: Graph, names: Names, pixels: Normalization, group: int
    ) -> tuple[str, npt.NDArray[np.float64]]:
        """Patches without positions, and what is to be added to each, [hidden]."""
        outer, seen = self.side // group, self.side * self.patch
        value = cut(graph, self.patch, group, outer, outer, crop=None if seen == self.image else seen)
        matrix, offset = self.patches(names, pixels)
        return graph.one("MatMul", value, graph.constant("patch_embedding", matrix)), offset

    def patches(self, names: Names, pixels: Normalization) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """The patch convolution as a matrix float32 [patch * patch * 3, hidden] over raw bytes, and what is added."""
        matrix, offset = folded(floats(self.kernel(names)), pixels)
        return matrix, offset + floats(names.tensor("embeddings.patch_embedding.bias", (self.hidden,)))

    def positions(self, names: Names) -> npt.NDArray[np.float32]:
        """The table of positions, row by row, [side * side, hidden]."""
        return floats(names.tensor("embeddings.position_embedding.weight", (self.side**2, self.hidden)))


Encoder = TypeVar("Encoder", bound=SigLIP)


def siglip(config: Section, **defaults: int) -> SigLIP:
    """Read `config`, the vision configuration; `defaults` are what the family's configuration class fills in."""
    return read_encoder(config, SigLIP, 1e-6, "gelu_pytorch_tanh", **defaults)


def read_encoder(config: Section, kind: type[Encoder], epsilon: float, activation: str, **defaults: int) -> Encoder:
    """Likewise, of one that is much like it; `epsilon` and `activation` are defaults, too."""
    config.require("num_channels", 3, 3)
    found = kind(
        hidden=config.integer("hidden_size", defaults["hidden_size"]),
        inner=config.integer("intermediate_size", defaults["intermediate_size"]),
        layers=config.integer("num_hidden_layers", defaults["num_hidden_layers"]),
        heads=config.integer("num_attention_heads", defaults["num_attention_heads"]),
        image=config.integer("image_size", defaults["image_size"]),
        patch=config.integer("patch_size", defaults["patch_size"]),
        epsilon=config.number("layer_norm_eps", epsilon, positive=True),
        activation=read_activation(config, activation),
    )
    if found.hidden % found.heads:
        raise config.wrong("num_attention_heads", f"hidden_size {found.hidden} is no multiple of it")
    if found.patch > found.image:
        raise config.wrong("patch_size", f"image_size is {found.image}")
    refuse_square(config, found.inner, found.hidden)
    return found
