"""Qwen's vision transformers with 2-D rotary positions, for pictures of any size, as GGUF and as ONNX.

A projector of two matrices merges neighbouring patches. Some encoders also have deepstack projectors (arXiv
2406.04334) after earlier layers, whose output the decoder's first layers add. A `QwenViTVariant` describes how the
encoders differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.encoder_activations import Activation
from pocketvlm_converters.networks.sizes import layer_sizes
from pocketvlm_converters.onnx.feed_forward import Matrix, feed_forward
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.grid import Grid, Windows
from pocketvlm_converters.onnx.layers import add_norm, norm
from pocketvlm_converters.onnx.patches import Normalization, cut_patches, fold_normalization
from pocketvlm_converters.onnx.resample import resample_positions, resample_positions_cubically
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Value, Weight

FRAMES = 2  # frames of a video in one patch convolution; a picture is the same frame twice


@dataclass(frozen=True)
class QwenViTVariant:
    """How one encoder differs from the others. Names are the checkpoint's.

    - `up`, `down`, `gate`: the matrices of the MLP. With a gate, the MLP is activation(gate) * up.
    - `rms`: norms divide by the root of the mean square and have no shift.
    - `merger`: the norm and the two matrices of the projectors.
    - `last`: the norm after the last layer, if it is not the merger's.
    - `fused`: libmtmd reads queries, keys and values from one matrix.
    - `head_norms`: queries and keys have a norm in each head.
    - `shifted`: the patch convolution has a bias.
    - `biased`: the layers' matrices have biases.
    - `patch_norm`: a norm of the patches, before their positions are added.
    - `positions`: the table of positions. It is resampled bilinearly with coinciding corners, or by a `cubic` filter.
    """

    activation: Activation
    up: str
    down: str
    gate: str = ""
    rms: bool = False
    merger: tuple[str, str, str] = ("ln_q", "mlp.0", "mlp.2")
    last: str = ""
    fused: bool = False
    head_norms: bool = False
    shifted: bool = False
    biased: bool = True
    patch_norm: str = ""
    positions: str = "pos_embed"
    cubic: bool = False


@dataclass(frozen=True)
class QwenViT:
    """Sizes of the encoder. `merge` x `merge` patches become one embedding of `width` values.

    - `window`: the edge of attention windows, in embeddings; 0 if all layers attend to the whole picture.
    - `full`: every `full`-th layer (full - 1, 2 * full - 1, ...) attends to the whole picture all the same.
    - `table`: the edge of the square table of learned positions, which is resampled to the picture; 0 for none. With a
      table, the patch convolution has a bias.
    - `deepstack`: the layers with a projector of their own. In each row of the output, their embeddings follow those
      of the last layer.
    """

    kind: QwenViTVariant
    hidden: int
    inner: int
    layers: int
    heads: int
    patch: int
    merge: int
    width: int
    epsilon: float
    window: int = 0
    full: int = 1
    table: int = 0
    deepstack: tuple[int, ...] = ()

    @property
    def merged(self) -> int:
        """The width of a square of patches."""
        return self.hidden * self.merge**2

    @property
    def head(self) -> int:
        """The width of one head."""
        return self.hidden // self.heads

    @property
    def row(self) -> int:
        """The width of an embedding with those of the deepstack layers."""
        return self.width * (1 + len(self.deepstack))

    def metadata(self) -> dict[str, Value]:
        metadata: dict[str, Value] = {
            "clip.has_vision_encoder": True,
            **self.kind.activation.keys,
            "clip.vision.patch_size": self.patch,
            "clip.vision.spatial_merge_size": self.merge,
            **layer_sizes(self, self.epsilon),
            "clip.vision.projection_dim": self.width,
        }
        if self.window:
            metadata["clip.vision.n_wa_pattern"] = self.full
        if self.deepstack:
            metadata["clip.vision.is_deepstack_layers"] = [layer in self.deepstack for layer in range(self.layers)]
        return metadata

    def weights(self, names: Names) -> list[Weight]:
        """Return the weights. Patch convolution, norms and biases stay float32, as in every encoder here."""
        hidden, inner, weights = self.hidden, self.inner, []

        def exact(gguf: str, tensor: Tensor) -> None:
            weights.append(Weight(gguf, tensor, exact=True))

        def linear(gguf: str, name: str, shape: tuple[int, int]) -> None:
            weights.extend(self._linear(names, gguf, name, shape, biased=self.kind.biased))

        def scaled(gguf: str, name: str) -> None:
            weights.extend(self._scales(names, gguf, name, hidden))

        kernel = self._kernel(names)
        for frame, gguf in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
            exact(gguf, kernel[:, :, frame])
        if self.kind.shifted or self.table:
            exact("v.patch_embd.bias", self._shift(names))
        if self.table:
            exact("v.position_embd.weight", self._positions(names))
        if self.kind.patch_norm:
            scaled("v.norm_embd", self.kind.patch_norm)
        for layer in range(self.layers):
            source, target = f"blocks.{layer}.", f"v.blk.{layer}."
            for gguf, name in (("ln1", "norm1"), ("ln2", "norm2")):
                scaled(target + gguf, source + name)
            qkv = names.tensor(f"{source}attn.qkv.weight", (3 * hidden, hidden))
            for gguf, rows in self._attention_parts():
                weights.append(Weight(f"{target}{gguf}.weight", qkv[rows]))
                if self.kind.biased:
                    exact(f"{target}{gguf}.bias", names.tensor(f"{source}attn.qkv.bias", (3 * hidden,))[rows])
            for x in self._normed:
                exact(f"{target}attn_{x}_norm.weight", names.tensor(f"{source}attn.{x}_norm.weight", (self.head,)))
            linear(f"{target}attn_out", f"{source}attn.proj", (hidden, hidden))
            if self.kind.gate:
                linear(f"{target}ffn_gate", f"{source}mlp.{self.kind.gate}", (inner, hidden))
            linear(f"{target}ffn_up", f"{source}mlp.{self.kind.up}", (inner, hidden))
            linear(f"{target}ffn_down", f"{source}mlp.{self.kind.down}", (hidden, inner))
        scaled("v.post_ln", self._last)
        return weights + self._projectors(names)

    def graph(self, graph: Graph, names: Names, pixels: Normalization) -> str:
        """Add encoder and projector to `graph` and return the output, [tiles, embeddings, row].

        A tile may have any height and width that patch * merge divides. Padding of windows does not go through linear
        layers.
        """
        grid = Grid(graph, self.patch, self.merge)
        angles = (graph.integers(0), *grid.angles(self.head))
        windows = grid.windows(self.window) if self.window else None

        def scales(name: str, size: int = self.hidden) -> list[str]:
            return [graph.vector(names.tensor(f"{name}.{part}", (size,))) for part in self._norm_parts]

        def tensors(name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
            bias = names.tensor(f"{name}.bias", shape[:1]) if self.kind.biased else None
            return names.tensor(f"{name}.weight", shape), bias

        def linear(value: str, name: str, shape: tuple[int, int]) -> str:
            return graph.linear(value, *tensors(name, shape))

        def activate(first: str, *others: str) -> str:
            inner = self.kind.activation.add(graph, first)
            return graph.one("Mul", inner, *others) if others else inner

        value, deepstack_outputs = self._patches(graph, names, pixels, grid), []
        up, down = (self.inner, self.hidden), (self.hidden, self.inner)
        normed = norm(graph, value, *scales("blocks.0.norm1"), epsilon=self.epsilon)
        for layer in range(self.layers):
            prefix = f"blocks.{layer}."
            parts = linear(normed, f"{prefix}attn.qkv", (3 * self.hidden, self.hidden))
            attends_fully = (layer + 1) % self.full == 0
            norms = [graph.vector(names.tensor(f"{prefix}attn.{x}_norm.weight", (self.head,))) for x in self._normed]
            mixed = self._attention(graph, grid, parts, angles, norms, None if attends_fully else windows)
            mixed = linear(mixed, f"{prefix}attn.proj", (self.hidden, self.hidden))
            normed, value = add_norm(graph, value, mixed, *scales(f"{prefix}norm2"), epsilon=self.epsilon)
            firsts = (self.kind.gate, self.kind.up) if self.kind.gate else (self.kind.up,)
            inner = feed_forward(
                graph,
                [Matrix(normed, *tensors(f"{prefix}mlp.{name}", up)) for name in firsts],
                activate,
                *tensors(f"{prefix}mlp.{self.kind.down}", down),
                lowest=None if self.kind.gate else self.kind.activation.lowest,
            )
            last = layer + 1 == self.layers
            deepstack = layer in self.deepstack
            following = scales(self._last if last else f"blocks.{layer + 1}.norm1")
            normed, value = add_norm(graph, value, inner, *following, epsilon=self.epsilon, keep=deepstack or not last)
            if deepstack:
                source = f"deepstack_merger_list.{self.deepstack.index(layer)}"
                merged = graph.reshape(value, 0, -1, self.merged)
                merged = norm(
                    graph, merged, *scales(f"{source}.{self.kind.merger[0]}", self.merged), epsilon=self.epsilon
                )
                deepstack_outputs.append(self._project(graph, names, merged, source))
        value = self._merge(graph, names, normed)
        return graph.one("Concat", value, *deepstack_outputs, axis=-1) if deepstack_outputs else value

    def _projectors(self, names: Names) -> list[Weight]:
        """Return the weights of the projector that `_merge` computes, and of the deepstack projectors."""
        scale, first, second = self.kind.merger
        weights = [
            *self._linear(names, "mm.0", f"merger.{first}", (self.merged, self.merged)),
            *self._linear(names, "mm.2", f"merger.{second}", (self.width, self.merged)),
        ]
        for number, layer in enumerate(self.deepstack):
            source, target = f"deepstack_merger_list.{number}.", f"v.deepstack.{layer}."
            weights += self._scales(names, f"{target}norm", source + scale, self.merged)
            weights += self._linear(names, f"{target}fc1", source + first, (self.merged, self.merged))
            weights += self._linear(names, f"{target}fc2", source + second, (self.width, self.merged))
        return weights

    def _merge(self, graph: Graph, names: Names, value: str) -> str:
        """Project the last layer's normed output: [tiles, patches, hidden] -> [tiles, embeddings, width]."""
        return self._project(graph, names, graph.reshape(value, 0, -1, self.merged), "merger")

    def _project(self, graph: Graph, names: Names, value: str, name: str) -> str:
        """Apply the two matrices of the projector `name`: [tiles, embeddings, merged] -> [tiles, embeddings, width]."""
        _, first, second = self.kind.merger
        for number, (matrix, rows) in enumerate(((first, self.merged), (second, self.width))):
            if number:
                value = graph.one("Gelu", value, domain=MICROSOFT)
            weight = names.tensor(f"{name}.{matrix}.weight", (rows, self.merged))
            value = graph.linear(value, weight, names.tensor(f"{name}.{matrix}.bias", (rows,)), sensitive=True)
        return value

    def _linear(
        self, names: Names, gguf: str, name: str, shape: tuple[int, int], *, biased: bool = True
    ) -> list[Weight]:
        weights = [Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape))]
        if biased:
            weights.append(Weight(f"{gguf}.bias", names.tensor(f"{name}.bias", shape[:1]), exact=True))
        return weights

    def _scales(self, names: Names, gguf: str, name: str, size: int) -> list[Weight]:
        """Return the weights of the norm `name`."""
        parts = ((part, names.tensor(f"{name}.{part}", (size,))) for part in self._norm_parts)
        return [Weight(f"{gguf}.{part}", tensor, exact=True) for part, tensor in parts]

    @property
    def _last(self) -> str:
        return self.kind.last or f"merger.{self.kind.merger[0]}"

    @property
    def _normed(self) -> str:
        """The initials of queries and keys, if they have a norm in each head."""
        return "qk" if self.kind.head_norms else ""

    @property
    def _norm_parts(self) -> tuple[str, ...]:
        return ("weight",) if self.kind.rms else ("weight", "bias")

    def _attention_parts(self) -> list[tuple[str, slice]]:
        """Return libmtmd's names of queries, keys and values, each with its rows in the checkpoint's matrix."""
        if self.kind.fused:
            return [("attn_qkv", slice(None))]
        places = enumerate(("attn_q", "attn_k", "attn_v"))
        return [(gguf, slice(at * self.hidden, (at + 1) * self.hidden)) for at, gguf in places]

    def _attention(
        self,
        graph: Graph,
        grid: Grid,
        parts: str,
        angles: tuple[str, ...],
        norms: Sequence[str],
        windows: Windows | None,
    ) -> str:
        """Attend within `windows`, or to the whole picture if it is None.

        `parts` [tiles, patches, 3 * hidden] -> [tiles, patches, hidden]. `norms` has the scales of a head's queries
        and keys, or nothing.
        """
        queries, keys, values = graph.op(
            "Split", parts, graph.integers(*[self.hidden] * 3), outputs=[True] * 3, axis=-1
        )
        if norms:
            heads = (graph.reshape(value, 0, -1, self.heads, self.head) for value in (queries, keys))
            heads = (norm(graph, value, scale, epsilon=self.epsilon) for value, scale in zip(heads, norms, strict=True))
            queries, keys = (graph.reshape(value, 0, -1, self.hidden) for value in heads)
        queries, keys = (
            graph.one("RotaryEmbedding", value, *angles, domain=MICROSOFT, num_heads=self.heads)
            for value in (queries, keys)
        )
        if windows is None:
            return graph.one("MultiHeadAttention", queries, keys, values, domain=MICROSOFT, num_heads=self.heads)
        inside = (grid.split(value, windows, self.hidden) for value in (queries, keys, values))
        mixed = graph.one("MultiHeadAttention", *inside, "", windows.real, domain=MICROSOFT, num_heads=self.heads)
        return grid.join(mixed, windows, self.hidden)

    def _patches(self, graph: Graph, names: Names, pixels: Normalization, grid: Grid) -> str:
        channels = 3 * FRAMES
        value = cut_patches(graph, self.patch, self.merge, grid.rows, grid.cols, channels=channels)
        kernel = floats(self._kernel(names)).swapaxes(1, 2)  # a pixel has the colours of the first frame, then the next
        kernel = kernel.reshape(self.hidden, channels, self.patch, self.patch)
        matrix, offset = fold_normalization(kernel, pixels)
        value = graph.one("MatMul", value, graph.constant("patch_embedding", matrix))
        if self.kind.shifted or self.table:
            offset += floats(self._shift(names))
        shape = (self.table, self.table, self.hidden)
        if self.table and not self.kind.patch_norm:
            # A resampled position is a weighted mean, so a constant added to the table is added to each patch.
            table = floats(self._positions(names)) + offset.astype(np.float32)
            return graph.one("Add", value, self._resampled(graph, grid, table.reshape(shape)))
        value = graph.one("Add", value, graph.constant("patch_offset", offset.astype(np.float32)))
        if self.kind.patch_norm:
            parts = (names.tensor(f"{self.kind.patch_norm}.{part}", (self.hidden,)) for part in self._norm_parts)
            value = norm(graph, value, *map(graph.vector, parts), epsilon=self.epsilon)
        if not self.table:
            return value
        return graph.one("Add", value, self._resampled(graph, grid, floats(self._positions(names)).reshape(shape)))

    def _resampled(self, graph: Graph, grid: Grid, table: npt.NDArray[np.float32]) -> str:
        if self.kind.cubic:
            return resample_positions_cubically(graph, grid, table)
        return resample_positions(graph, grid, table, corners=True)

    def _shift(self, names: Names) -> Tensor:
        return names.tensor("patch_embed.proj.bias", (self.hidden,))

    def _positions(self, names: Names) -> Tensor:
        return names.tensor(f"{self.kind.positions}.weight", (self.table**2, self.hidden))

    def _kernel(self, names: Names) -> Tensor:
        return names.tensor("patch_embed.proj.weight", (self.hidden, 3, FRAMES, self.patch, self.patch))
