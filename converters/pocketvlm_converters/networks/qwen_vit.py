"""A vision transformer with 2-D rotary positions, for pictures of any size, as GGUF and as ONNX.

Neighbouring patches are merged by a projector of two matrices. In some, deepstack projectors (arXiv 2406.04334) do so
after earlier layers as well, and the decoder's first layers add what they give. A `QwenViTVariant` says how encoders
differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.activations import Activation
from pocketvlm_converters.networks.sizes import layer_sizes
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.grid import Grid, Windows
from pocketvlm_converters.onnx.layers import add_norm, norm
from pocketvlm_converters.onnx.patches import Normalization, cut, folded
from pocketvlm_converters.onnx.resample import resampled
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Value, Weight

FRAMES = 2  # of a video that the patch convolution takes together; a picture is the same frame twice


@dataclass(frozen=True)
class QwenViTVariant:
    """`up`, `down` and `gate` are the matrices of an MLP as the checkpoint calls them.

    With a gate, the MLP is activation(gate) * up. Norms go by the root of the mean square where they are `rms`, and
    have a shift where they are not; with `head_norms`, queries and keys of each head have one. `merger` are the norm
    and the matrices of the projectors, `last` the norm behind the last layer, if not that one. Where they are `fused`,
    libmtmd takes queries, keys and values from one matrix. The patch convolution has a bias where it is `shifted`.
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


@dataclass(frozen=True)
class QwenViT:
    """Sizes. `merge` x `merge` patches become one embedding of `width`.

    With a `window`, layers attend within windows of so many embeddings squared, every `full`-th (full - 1,
    2 * full - 1, ...) to the whole picture; without, all to the whole picture. With a `table`, so many learned
    positions squared are resampled to the picture, and the patch convolution has a bias. `deepstack` are the layers
    that have a projector of their own: its embeddings follow those of the last in each row.
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
        return self.hidden * self.merge**2

    @property
    def head(self) -> int:
        """The width of one."""
        return self.hidden // self.heads

    @property
    def row(self) -> int:
        """The width of all that one embedding brings."""
        return self.width * (1 + len(self.deepstack))

    def metadata(self) -> dict[str, Value]:
        found: dict[str, Value] = {
            "clip.has_vision_encoder": True,
            **self.kind.activation.keys,
            "clip.vision.patch_size": self.patch,
            "clip.vision.spatial_merge_size": self.merge,
            **layer_sizes(self, self.epsilon),
            "clip.vision.projection_dim": self.width,
        }
        if self.window:
            found["clip.vision.n_wa_pattern"] = self.full
        if self.deepstack:
            found["clip.vision.is_deepstack_layers"] = [layer in self.deepstack for layer in range(self.layers)]
        return found

    def weights(self, names: Names) -> list[Weight]:
        """Patch convolution, norms and biases stay float32, as in every encoder here."""
        hidden, inner, found = self.hidden, self.inner, []

        def exact(gguf: str, tensor: Tensor) -> None:
            found.append(Weight(gguf, tensor, exact=True))

        def linear(gguf: str, name: str, shape: tuple[int, int]) -> None:
            found.extend(self._linear(names, gguf, name, shape))

        def scaled(gguf: str, name: str) -> None:
            found.extend(self._scales(names, gguf, name, hidden))

        kernel = self._kernel(names)
        for frame, gguf in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
            exact(gguf, replace(kernel, data=kernel.data[:, :, frame]))
        if self.kind.shifted or self.table:
            exact("v.patch_embd.bias", self._shift(names))
        if self.table:
            exact("v.position_embd.weight", self._positions(names))
        for layer in range(self.layers):
            here, there = f"blocks.{layer}.", f"v.blk.{layer}."
            for gguf, name in (("ln1", "norm1"), ("ln2", "norm2")):
                scaled(there + gguf, here + name)
            together = names.tensor(f"{here}attn.qkv.weight", (3 * hidden, hidden))
            shifts = names.tensor(f"{here}attn.qkv.bias", (3 * hidden,))
            for gguf, rows in self._attention_parts():
                found.append(Weight(f"{there}{gguf}.weight", replace(together, data=together.data[rows])))
                exact(f"{there}{gguf}.bias", replace(shifts, data=shifts.data[rows]))
            for x in self._normed:
                exact(f"{there}attn_{x}_norm.weight", names.tensor(f"{here}attn.{x}_norm.weight", (self.head,)))
            linear(f"{there}attn_out", f"{here}attn.proj", (hidden, hidden))
            if self.kind.gate:
                linear(f"{there}ffn_gate", f"{here}mlp.{self.kind.gate}", (inner, hidden))
            linear(f"{there}ffn_up", f"{here}mlp.{self.kind.up}", (inner, hidden))
            linear(f"{there}ffn_down", f"{here}mlp.{self.kind.down}", (hidden, inner))
        scaled("v.post_ln", self._last)
        return found + self._projectors(names)

    def graph(self, graph: Graph, names: Names, pixels: Normalization) -> str:
        """Add encoder and projector to `graph`; its output [tiles, embeddings, row].

        A tile may have any height and width that patch * merge divides. Linear layers see real patches only.
        """
        grid = Grid(graph, self.patch, self.merge)
        turns = (graph.integers(0), *grid.angles(self.head))
        windows = grid.windows(self.window) if self.window else None

        def scales(name: str, size: int = self.hidden) -> list[str]:
            return [graph.vector(names.tensor(f"{name}.{part}", (size,))) for part in self._norm_parts]

        def linear(value: str, name: str, shape: tuple[int, int], sensitive: bool = False) -> str:
            bias = names.tensor(f"{name}.bias", shape[:1])
            return graph.linear(value, names.tensor(f"{name}.weight", shape), bias, sensitive)

        value, deep = self._patches(graph, names, pixels, grid), []
        up, down = (self.inner, self.hidden), (self.hidden, self.inner)
        normed = norm(graph, value, *scales("blocks.0.norm1"), epsilon=self.epsilon)
        for layer in range(self.layers):
            at = f"blocks.{layer}."
            parts = linear(normed, f"{at}attn.qkv", (3 * self.hidden, self.hidden))
            whole = (layer + 1) % self.full == 0
            norms = [graph.vector(names.tensor(f"{at}attn.{x}_norm.weight", (self.head,))) for x in self._normed]
            mixed = self._attention(graph, grid, parts, turns, norms, None if whole else windows)
            mixed = linear(mixed, f"{at}attn.proj", (self.hidden, self.hidden))
            normed, value = add_norm(graph, value, mixed, *scales(f"{at}norm2"), epsilon=self.epsilon)
            inner = self.kind.activation.add(graph, linear(normed, f"{at}mlp.{self.kind.gate or self.kind.up}", up))
            if self.kind.gate:
                inner = graph.one("Mul", inner, linear(normed, f"{at}mlp.{self.kind.up}", up))
            # What the MLP multiplies or activates has the largest outliers of all activations.
            inner = linear(inner, f"{at}mlp.{self.kind.down}", down, sensitive=graph.kind == "int8")
            last = layer + 1 == self.layers
            tapped = layer in self.deepstack
            following = scales(self._last if last else f"blocks.{layer + 1}.norm1")
            normed, value = add_norm(graph, value, inner, *following, epsilon=self.epsilon, keep=tapped or not last)
            if tapped:
                here = f"deepstack_merger_list.{self.deepstack.index(layer)}"
                merged = graph.reshape(value, 0, -1, self.merged)
                merged = norm(
                    graph, merged, *scales(f"{here}.{self.kind.merger[0]}", self.merged), epsilon=self.epsilon
                )
                deep.append(self._project(graph, names, merged, here))
        value = self._merge(graph, names, normed)
        return graph.one("Concat", value, *deep, axis=-1) if deep else value

    def _projectors(self, names: Names) -> list[Weight]:
        """As GGUF has them: what `_merge` computes, and the same for deepstack."""
        scale, first, second = self.kind.merger
        found = [
            *self._linear(names, "mm.0", f"merger.{first}", (self.merged, self.merged)),
            *self._linear(names, "mm.2", f"merger.{second}", (self.width, self.merged)),
        ]
        for number, layer in enumerate(self.deepstack):
            here, there = f"deepstack_merger_list.{number}.", f"v.deepstack.{layer}."
            found += self._scales(names, f"{there}norm", here + scale, self.merged)
            found += self._linear(names, f"{there}fc1", here + first, (self.merged, self.merged))
            found += self._linear(names, f"{there}fc2", here + second, (self.width, self.merged))
        return found

    def _merge(self, graph: Graph, names: Names, value: str) -> str:
        """The last layer's [tiles, patches, hidden], after its norm -> [tiles, embeddings, width]."""
        return self._project(graph, names, graph.reshape(value, 0, -1, self.merged), "merger")

    def _project(self, graph: Graph, names: Names, value: str, name: str) -> str:
        """[tiles, embeddings, merged] -> [tiles, embeddings, width]."""
        _, first, second = self.kind.merger
        for number, (matrix, rows) in enumerate(((first, self.merged), (second, self.width))):
            if number:
                value = graph.one("Gelu", value, domain=MICROSOFT)
            weight = names.tensor(f"{name}.{matrix}.weight", (rows, self.merged))
            value = graph.linear(value, weight, names.tensor(f"{name}.{matrix}.bias", (rows,)), sensitive=True)
        return value

    def _linear(self, names: Names, gguf: str, name: str, shape: tuple[int, int]) -> tuple[Weight, Weight]:
        bias = names.tensor(f"{name}.bias", shape[:1])
        return Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape)), Weight(f"{gguf}.bias", bias, exact=True)

    def _scales(self, names: Names, gguf: str, name: str, size: int) -> list[Weight]:
        """A norm's."""
        parts = ((part, names.tensor(f"{name}.{part}", (size,))) for part in self._norm_parts)
        return [Weight(f"{gguf}.{part}", tensor, exact=True) for part, tensor in parts]

    @property
    def _last(self) -> str:
        return self.kind.last or f"merger.{self.kind.merger[0]}"

    @property
    def _normed(self) -> str:
        """What has a norm in each head."""
        return "qk" if self.kind.head_norms else ""

    @property
    def _norm_parts(self) -> tuple[str, ...]:
        return ("weight",) if self.kind.rms else ("weight", "bias")

    def _attention_parts(self) -> list[tuple[str, slice]]:
        """What libmtmd calls queries, keys and values, and their rows in the checkpoint's matrix."""
        if self.kind.fused:
            return [("attn_qkv", slice(None))]
        places = enumerate(("attn_q", "attn_k", "attn_v"))
        return [(gguf, slice(at * self.hidden, (at + 1) * self.hidden)) for at, gguf in places]

    def _attention(
        self,
        graph: Graph,
        grid: Grid,
        parts: str,
        turns: tuple[str, ...],
        norms: Sequence[str],
        windows: Windows | None,
    ) -> str:
        """`parts` [tiles, patches, 3 * hidden] -> [tiles, patches, hidden]; `windows` None: to the whole picture.

        `norms` are the scales of a head's queries and of its keys, or none.
        """
        queries, keys, values = graph.op(
            "Split", parts, graph.integers(*[self.hidden] * 3), outputs=[True] * 3, axis=-1
        )
        if norms:
            heads = (graph.reshape(value, 0, -1, self.heads, self.head) for value in (queries, keys))
            heads = (norm(graph, value, scale, epsilon=self.epsilon) for value, scale in zip(heads, norms, strict=True))
            queries, keys = (graph.reshape(value, 0, -1, self.hidden) for value in heads)
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
        if self.kind.shifted or self.table:
            offset += floats(self._shift(names))
        if not self.table:
            return graph.one("Add", value, graph.constant("patch_offset", offset.astype(np.float32)))
        # All that is constant goes into the table: the shares of the positions that a patch gets add up to 1.
        table = floats(self._positions(names)) + offset.astype(np.float32)
        table = table.reshape(self.table, self.table, self.hidden)
        return graph.one("Add", value, resampled(graph, grid, table, corners=True))

    def _shift(self, names: Names) -> Tensor:
        return names.tensor("patch_embed.proj.bias", (self.hidden,))

    def _positions(self, names: Names) -> Tensor:
        return names.tensor("pos_embed.weight", (self.table**2, self.hidden))

    def _kernel(self, names: Names) -> Tensor:
        return names.tensor("patch_embed.proj.weight", (self.hidden, 3, FRAMES, self.patch, self.patch))
