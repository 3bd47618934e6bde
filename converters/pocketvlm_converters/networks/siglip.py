"""SigLIP's vision transformer and those that resemble it, as GGUF and as ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.encoder_activations import Activation, read_activation
from pocketvlm_converters.networks.feed_forward import refuse_square
from pocketvlm_converters.networks.sizes import layer_sizes
from pocketvlm_converters.onnx.feed_forward import Matrix, feed_forward
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.layers import add_norm
from pocketvlm_converters.onnx.patches import Normalization, cut_patches, fold_normalization
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Value, Weight


@dataclass(frozen=True)
class SigLIP:
    """Sizes of the encoder. `side` is the number of patches along one edge of a tile.

    `normed`: a norm follows the last layer.
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
        """Return the weights. Patch convolution, position table, norms and biases stay float32: they are sensitive."""
        hidden, inner = self.hidden, self.inner
        weights = [Weight(gguf, tensor, exact=True) for gguf, tensor in self.input_tensors(names).items()]

        def exact(gguf: str, name: str, shape: tuple[int, ...]) -> None:
            weights.append(Weight(gguf, names.tensor(name, shape), exact=True))

        def linear(gguf: str, name: str, shape: tuple[int, int]) -> None:
            weights.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape)))
            exact(f"{gguf}.bias", f"{name}.bias", shape[:1])

        for layer in range(self.layers):
            source, target = f"encoder.layers.{layer}.", f"v.blk.{layer}."
            for gguf, name in (("ln1", "layer_norm1"), ("ln2", "layer_norm2")):
                exact(f"{target}{gguf}.weight", f"{source}{name}.weight", (hidden,))
                exact(f"{target}{gguf}.bias", f"{source}{name}.bias", (hidden,))
            for gguf, name in (
                ("attn_q", "q_proj"),
                ("attn_k", "k_proj"),
                ("attn_v", "v_proj"),
                ("attn_out", "out_proj"),
            ):
                linear(f"{target}{gguf}", f"{source}self_attn.{name}", (hidden, hidden))
            linear(f"{target}ffn_up", f"{source}mlp.fc1", (inner, hidden))
            linear(f"{target}ffn_down", f"{source}mlp.fc2", (hidden, inner))
        if self.normed:
            exact("v.post_ln.weight", "post_layernorm.weight", (hidden,))
            exact("v.post_ln.bias", "post_layernorm.bias", (hidden,))
        return weights

    def input_tensors(self, names: Names) -> dict[str, Tensor]:
        """Return the tensors before the first layer, by their names in GGUF."""
        return {
            "v.patch_embd.weight": self.kernel(names),
            "v.patch_embd.bias": names.tensor("embeddings.patch_embedding.bias", (self.hidden,)),
            "v.position_embd.weight": names.tensor("embeddings.position_embedding.weight", (self.side**2, self.hidden)),
        }

    def graph(self, graph: Graph, names: Names, pixels: Normalization, group: int) -> str:
        """Add the encoder to `graph` and return its output, [tiles, side * side, hidden], after the last norm if any.

        Patches are ordered by squares of `group` x `group`, as `cut_patches` leaves them. The position table has the
        same order, so attention gives the same result.
        """
        value = self.embed(graph, names, pixels, group)

        def norm(name: str) -> tuple[str, str]:
            return self.norm(graph, names, name)

        def tensors(name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
            return names.tensor(f"{name}.weight", shape), names.tensor(f"{name}.bias", shape[:1])

        def linear(value: str, name: str) -> str:
            return graph.linear(value, *tensors(name, (self.hidden, self.hidden)))

        up, down = (self.inner, self.hidden), (self.hidden, self.inner)
        activate, rotate = partial(self.activation.add, graph), self.rotation(graph, group)
        scale, shift = norm("encoder.layers.0.layer_norm1")
        normed = graph.one("LayerNormalization", value, scale, shift, epsilon=self.epsilon)
        for layer in range(self.layers):
            prefix = f"encoder.layers.{layer}."
            queries, keys, values = (linear(normed, f"{prefix}self_attn.{x}_proj") for x in "qkv")
            queries, keys = rotate(queries), rotate(keys)
            mixed = graph.one("MultiHeadAttention", queries, keys, values, domain=MICROSOFT, num_heads=self.heads)
            mixed = linear(mixed, f"{prefix}self_attn.out_proj")
            normed, value = add_norm(graph, value, mixed, *norm(f"{prefix}layer_norm2"), epsilon=self.epsilon)
            first = Matrix(normed, *tensors(f"{prefix}mlp.fc1", up))
            second = tensors(f"{prefix}mlp.fc2", down)
            inner = feed_forward(graph, [first], activate, *second, lowest=self.activation.lowest)
            last = layer + 1 == self.layers
            if last and not self.normed:
                return graph.one("Add", value, inner)
            following = "post_layernorm" if last else f"encoder.layers.{layer + 1}.layer_norm1"
            normed, value = add_norm(graph, value, inner, *norm(following), epsilon=self.epsilon, keep=not last)
        return normed

    def rotation(self, graph: Graph, group: int) -> Callable[[str], str]:  # noqa: ARG002
        """Return what adds the positions of patches to queries and keys; here nothing is added."""
        return lambda value: value

    def norm(self, graph: Graph, names: Names, name: str) -> tuple[str, str]:
        """Return scale and shift of the norm `name`."""
        weight, bias = (names.tensor(f"{name}.{part}", (self.hidden,)) for part in ("weight", "bias"))
        return graph.vector(weight), graph.vector(bias)

    def kernel(self, names: Names) -> Tensor:
        """Return the patch convolution, [hidden, 3, patch, patch]."""
        return names.tensor("embeddings.patch_embedding.weight", (self.hidden, 3, self.patch, self.patch))

    def embed(self, graph: Graph, names: Names, pixels: Normalization, group: int) -> str:
        """Return the input of the first layer, patches with their positions, [tiles, side * side, hidden]."""
        outer = self.side // group
        value, offset = self.embed_patches(graph, names, pixels, group)
        table = self.positions(names) + offset
        table = table.reshape(outer, group, outer, group, self.hidden).transpose(0, 2, 1, 3, 4)
        table = table.reshape(1, -1, self.hidden).astype(np.float32)
        return graph.one("Add", value, graph.constant("position_embedding", table))

    def embed_patches(
        self, graph: Graph, names: Names, pixels: Normalization, group: int
    ) -> tuple[str, npt.NDArray[np.float64]]:
        """Return the patches without positions, and the offset to add to each, [hidden]."""
        outer, covered = self.side // group, self.side * self.patch
        value = cut_patches(graph, self.patch, group, outer, outer, crop=None if covered == self.image else covered)
        matrix, offset = self.patch_matrix(names, pixels)
        return graph.one("MatMul", value, graph.constant("patch_embedding", matrix)), offset

    def patch_matrix(
        self, names: Names, pixels: Normalization
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Return the patch convolution over raw bytes: a matrix [patch * patch * 3, hidden] and an offset [hidden]."""
        matrix, offset = fold_normalization(floats(self.kernel(names)), pixels)
        return matrix, offset + floats(names.tensor("embeddings.patch_embedding.bias", (self.hidden,)))

    def positions(self, names: Names) -> npt.NDArray[np.float32]:
        """Return the position table, row by row, [side * side, hidden]."""
        return floats(names.tensor("embeddings.position_embedding.weight", (self.side**2, self.hidden)))


Encoder = TypeVar("Encoder", bound=SigLIP)


def siglip(config: Section, **defaults: int) -> SigLIP:
    """Read a vision configuration; `defaults` are those of the family's configuration class. Raises CheckpointError."""
    return read_encoder(config, SigLIP, 1e-6, "gelu_pytorch_tanh", **defaults)


def read_encoder(config: Section, kind: type[Encoder], epsilon: float, activation: str, **defaults: int) -> Encoder:
    """Read the vision configuration of a `kind` of encoder; `epsilon` and `activation` are defaults as well."""
    config.require("num_channels", 3, 3)
    encoder = kind(
        hidden=config.integer("hidden_size", defaults["hidden_size"]),
        inner=config.integer("intermediate_size", defaults["intermediate_size"]),
        layers=config.integer("num_hidden_layers", defaults["num_hidden_layers"]),
        heads=config.integer("num_attention_heads", defaults["num_attention_heads"]),
        image=config.integer("image_size", defaults["image_size"]),
        patch=config.integer("patch_size", defaults["patch_size"]),
        epsilon=config.number("layer_norm_eps", epsilon, positive=True),
        activation=read_activation(config, activation),
    )
    if encoder.hidden % encoder.heads:
        raise config.wrong("num_attention_heads", f"hidden_size {encoder.hidden} is not a multiple of it")
    if encoder.patch > encoder.image:
        raise config.wrong("patch_size", f"it must be at most image_size, {encoder.image}")
    refuse_square(config, encoder.inner, encoder.hidden)
    return encoder
