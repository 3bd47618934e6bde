"""A vision transformer with 2-D rotary positions, for pictures of any size, as GGUF and as ONNX.

Neighbouring patches are merged by a projector of two matrices. A `Kind` says how one differs from another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.family import Names, Value, Weight
from pocketvlm_converters.networks.activations import Activation
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.grid import Grid, Windows
from pocketvlm_converters.onnx.layers import add_norm, norm
from pocketvlm_converters.onnx.patches import Normalization, cut, folded
from pocketvlm_converters.onnx.weights import floats

FRAMES = 2  # of a video that the patch convolution takes together; a picture is the same frame twice
_NORM = "merger.ln_q"


@dataclass(frozen=True)
class Kind:
    """`up`, `down` and `gate` are the matrices of an MLP as the checkpoint calls them.

    With a gate, the MLP is activation(gate) * up. Norms go by the root of the mean square where they are `rms`, and
    have a shift where they are not.
    """

    activation: Activation
    up: str
    down: str
    gate: str = ""
    rms: bool = False


@dataclass(frozen=True)
class RotaryViT:
    """Sizes. `merge` x `merge` patches become one embedding of `width`.

    With a `window`, layers attend within windows of so many embeddings squared, every `full`-th (full - 1,
    2 * full - 1, ...) to the whole picture; without, all to the whole picture.
    """

    kind: Kind
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

    @property
    def merged(self) -> int:
        return self.hidden * self.merge**2

    def metadata(self) -> dict[str, Value]:
        found: dict[str, Value] = {
            "clip.has_vision_encoder": True,
            **self.kind.activation.keys,
            "clip.vision.patch_size": self.patch,
            "clip.vision.spatial_merge_size": self.merge,
            "clip.vision.embedding_length": self.hidden,
            "clip.vision.feed_forward_length": self.inner,
            "clip.vision.block_count": self.layers,
            "clip.vision.attention.head_count": self.heads,
            "clip.vision.attention.layer_norm_epsilon": self.epsilon,
            "clip.vision.projection_dim": self.width,
        }
        return found | ({"clip.vision.n_wa_pattern": self.full} if self.window else {})

    def weights(self, names: Names) -> list[Weight]:
        """Patch convolution, norms and biases stay float32, as in every encoder here."""
        hidden, inner, found = self.hidden, self.inner, []

        def exact(gguf: str, tensor: Tensor) -> None:
            found.append(Weight(gguf, tensor, exact=True))

        def linear(gguf: str, name: str, shape: tuple[int, int]) -> None:
            found.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape)))
            exact(f"{gguf}.bias", names.tensor(f"{name}.bias", shape[:1]))

        def scaled(gguf: str, name: str) -> None:
            for part in self._norm_parts:
                exact(f"{gguf}.{part}", names.tensor(f"{name}.{part}", (hidden,)))

        kernel = self._kernel(names)
        for frame, gguf in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
            exact(gguf, replace(kernel, data=kernel.data[:, :, frame]))
        for layer in range(self.layers):
            here, there = f"blocks.{layer}.", f"v.blk.{layer}."
            for gguf, name in (("ln1", "norm1"), ("ln2", "norm2")):
                scaled(there + gguf, here + name)
            together = names.tensor(f"{here}attn.qkv.weight", (3 * hidden, hidden))
            shifts = names.tensor(f"{here}attn.qkv.bias", (3 * hidden,))
            for gguf, at in (("attn_q", 0), ("attn_k", hidden), ("attn_v", 2 * hidden)):
                rows = slice(at, at + hidden)
                found.append(Weight(f"{there}{gguf}.weight", replace(together, data=together.data[rows])))
                exact(f"{there}{gguf}.bias", replace(shifts, data=shifts.data[rows]))
            linear(f"{there}attn_out", f"{here}attn.proj", (hidden, hidden))
            if self.kind.gate:
                linear(f"{there}ffn_gate", f"{here}mlp.{self.kind.gate}", (inner, hidden))
            linear(f"{there}ffn_up", f"{here}mlp.{self.kind.up}", (inner, hidden))
            linear(f"{there}ffn_down", f"{here}mlp.{self.kind.down}", (hidden, inner))
        scaled("v.post_ln", _NORM)
        linear("mm.0", "merger.mlp.0", (self.merged, self.merged))
        linear("mm.2", "merger.mlp.2", (self.width, self.merged))
        return found

    def graph(self, graph: Graph, names: Names, pixels: Normalization) -> str:
        """Add encoder and projector to `graph`; its output [tiles, embeddings, width].

        A tile may have any height and width that patch * merge divides. Linear layers see real patches only.
        """
        grid = Grid(graph, self.patch, self.merge)
        turns = (graph.integers(0), *grid.angles(self.hidden // self.heads))
        windows = grid.windows(self.window) if self.window else None

        def scales(name: str) -> list[str]:
            return [graph.vector(names.tensor(f"{name}.{part}", (self.hidden,))) for part in self._norm_parts]

        def linear(value: str, name: str, shape: tuple[int, int], sensitive: bool = False) -> str:
            bias = names.tensor(f"{name}.bias", shape[:1])
            return graph.linear(value, names.tensor(f"{name}.weight", shape), bias, sensitive)

        value = self._patches(graph, names, pixels, grid)
        up, down = (self.inner, self.hidden), (self.hidden, self.inner)
        normed = norm(graph, value, *scales("blocks.0.norm1"), epsilon=self.epsilon)
        for layer in range(self.layers):
            at = f"blocks.{layer}."
            parts = linear(normed, f"{at}attn.qkv", (3 * self.hidden, self.hidden))
            whole = (layer + 1) % self.full == 0
            mixed = self._attention(graph, grid, parts, turns, None if whole else windows)
            mixed = linear(mixed, f"{at}attn.proj", (self.hidden, self.hidden))
            normed, value = add_norm(graph, value, mixed, *scales(f"{at}norm2"), epsilon=self.epsilon)
            inner = self.kind.activation.add(graph, linear(normed, f"{at}mlp.{self.kind.gate or self.kind.up}", up))
            if self.kind.gate:
                inner = graph.one("Mul", inner, linear(normed, f"{at}mlp.{self.kind.up}", up))
            # What the MLP multiplies or activates has the largest outliers of all activations.
            inner = linear(inner, f"{at}mlp.{self.kind.down}", down, sensitive=graph.kind == "int8")
            last = layer + 1 == self.layers
            following = scales(_NORM if last else f"blocks.{layer + 1}.norm1")
            normed, value = add_norm(graph, value, inner, *following, epsilon=self.epsilon, keep=not last)
        merged = graph.reshape(normed, 0, -1, self.merged)
        merged = linear(merged, "merger.mlp.0", (self.merged, self.merged), sensitive=True)
        merged = graph.one("Gelu", merged, domain=MICROSOFT)
        return linear(merged, "merger.mlp.2", (self.width, self.merged), sensitive=True)

    @property
    def _norm_parts(self) -> tuple[str, ...]:
        return ("weight",) if self.kind.rms else ("weight", "bias")

    def _attention(self, graph: Graph, grid: Grid, parts: str, turns: tuple[str, ...], windows: Windows | None) -> str:
        """`parts` [tiles, patches, 3 * hidden] -> [tiles, patches, hidden]; `windows` None: to the whole picture."""
        queries, keys, values = graph.op(
            "Split", parts, graph.integers(*[self.hidden] * 3), outputs=[True] * 3, axis=-1
        )
        queries, keys = (
            graph.one("RotaryEmbedding", value, *turns, domain=MICROSOFT, num_heads=self.heads)
            for value in (queries, keys)
        )
        if windows is None:
            return graph.one("MultiHeadAttention", queries, keys, values, domain=MICROSOFT, num_heads=self.heads)
        inside = (grid.split(value, windows, self.hidden) for value in (queries, keys, values))
        mixed = graph.one("MultiHeadAttention", *inside, "", windows.real, domain=MICROSOFT, num_heads=self.heads)
        return grid.join(mixed, windows, self.hidden)

    def _patches(self, graph: Graph, names: Names, pixels: Normalization, grid: Grid) -> str:
        value = cut(graph, self.patch, self.merge, grid.rows, grid.cols)
        matrix, offset = folded(floats(self._kernel(names)).sum(axis=2), pixels)
        value = graph.one("MatMul", value, graph.constant("patch_embedding", matrix))
        return graph.one("Add", value, graph.constant("patch_offset", offset.astype(np.float32)))

    def _kernel(self, names: Names) -> Tensor:
        return names.tensor("patch_embed.proj.weight", (self.hidden, 3, FRAMES, self.patch, self.patch))
