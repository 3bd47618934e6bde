"""A vision transformer for pictures of any size, as GGUF and as ONNX: positions from a table for each axis and rotary
ones besides, norms before and after, gated MLPs, clipped activations, neighbours pooled by their mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.sizes import layer_sizes
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.grid import Grid
from pocketvlm_converters.onnx.layers import norm
from pocketvlm_converters.onnx.patches import Normalization, as_kernel, cut, folded
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Value, Weight

_PIXELS = Normalization((0.5,) * 3, (0.5,) * 3)  # part of the model: 2 * pixel - 1
_THETA = 100.0  # of rotary positions; libmtmd has it fixed
_UNBOUNDED = float(np.finfo(np.float32).max)
_BOUNDS = ("input_min", "input_max", "output_min", "output_max")
_MATRICES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {
    "ln1": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Gemma4ViT:
    """Sizes. `pool` x `pool` patches become one embedding; `positions` are in the table of each axis.

    `clipped`: every matrix has bounds for what goes in and out. `standard`: what is pooled is shifted and scaled.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    patch: int
    pool: int
    positions: int
    epsilon: float
    clipped: bool
    standard: bool

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    def metadata(self) -> dict[str, Value]:
        return {
            "clip.has_vision_encoder": True,
            "clip.use_gelu": True,
            "clip.vision.patch_size": self.patch,
            "clip.vision.projector.scale_factor": self.pool,
            **layer_sizes(self, self.epsilon),
        }

    def weights(self, names: Names) -> list[Weight]:
        found = [
            Weight("v.patch_embd.weight", self._kernel(names), exact=True),
            Weight("v.position_embd.weight", self._table(names), exact=True),
        ]
        for layer in range(self.layers):
            here, there = f"encoder.layers.{layer}.", f"v.blk.{layer}."
            for gguf, name in _NORMS.items():
                found.append(Weight(f"{there}{gguf}.weight", self._norm(names, here + name, self.hidden), exact=True))
            for gguf, name in (("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")):
                found.append(Weight(f"{there}{gguf}.weight", self._norm(names, here + name, self.head), exact=True))
            for gguf, name in _MATRICES.items():
                found.append(Weight(f"{there}{gguf}.weight", self._matrix(names, here + name)))
                for bound in _BOUNDS if self.clipped else ():
                    scalar, value = self._bound(names, f"{here}{name}.{bound}")
                    if abs(value) < _UNBOUNDED:
                        scalar = replace(scalar, data=scalar.data.reshape(1))
                        found.append(Weight(f"{there}{gguf}.{bound}", scalar, exact=True))
        if self.standard:
            found += [
                Weight(f"v.{name}", names.tensor(name, (self.hidden,)), exact=True)
                for name in ("std_bias", "std_scale")
            ]
        return found

    def graph(self, graph: Graph, names: Names) -> str:
        """Add the encoder to `graph`; its output [tiles, embeddings, hidden], pooled."""
        grid = Grid(graph, self.patch, self.pool)
        turns = (graph.integers(0), *grid.angles(self.head, _THETA))
        value = self._embedded(graph, names, grid)

        def normed(value: str, name: str) -> str:
            return norm(graph, value, graph.vector(self._norm(names, name, self.hidden)), epsilon=self.epsilon)

        for layer in range(self.layers):
            at = f"encoder.layers.{layer}."
            mixed = self._attention(graph, names, normed(value, f"{at}input_layernorm"), f"{at}self_attn.", turns)
            value = graph.one("Add", value, normed(mixed, f"{at}post_attention_layernorm"))
            seen = normed(value, f"{at}pre_feedforward_layernorm")
            gate = self._linear(graph, names, seen, f"{at}mlp.gate_proj")
            gate = graph.one("FastGelu", gate, domain=MICROSOFT)
            inner = graph.one("Mul", gate, self._linear(graph, names, seen, f"{at}mlp.up_proj"))
            # The product of a gated MLP has the largest outliers of all activations.
            inner = self._linear(graph, names, inner, f"{at}mlp.down_proj", sensitive=graph.kind == "int8")
            value = graph.one("Add", value, normed(inner, f"{at}post_feedforward_layernorm"))
        # Patches come in squares already: the mean over a square is that over an axis.
        value = graph.reshape(value, 0, -1, self.pool**2, self.hidden)
        value = graph.one("ReduceMean", value, axes=[2], keepdims=0)
        value = graph.one("Mul", value, graph.number(math.sqrt(self.hidden)))
        if self.standard:
            bias, scale = (graph.vector(names.tensor(name, (self.hidden,))) for name in ("std_bias", "std_scale"))
            value = graph.one("Mul", graph.one("Sub", value, bias), scale)
        return value

    def _embedded(self, graph: Graph, names: Names, grid: Grid) -> str:
        value = cut(graph, self.patch, self.pool, grid.rows, grid.cols)
        matrix, offset = folded(floats(self._kernel(names)), _PIXELS)
        value = graph.one("MatMul", value, graph.constant("patch_embedding", matrix))
        across, down = floats(self._table(names))
        down = (down + offset).astype(np.float32)
        axes, pool = graph.integers(0), graph.integers(self.pool)

        def first(name: str, table: npt.NDArray[np.float32], squares: str) -> str:
            return graph.one("Slice", graph.constant(name, table), axes, graph.one("Mul", squares, pool), axes)

        rows = graph.reshape(first("row_embedding", down, grid.rows), -1, 1, self.hidden)
        table = graph.one("Add", rows, first("column_embedding", across, grid.cols))
        table = graph.reshape(table, grid.rows, self.pool, grid.cols, self.pool, self.hidden)
        table = graph.one("Transpose", table, perm=[0, 2, 1, 3, 4])
        return graph.one("Add", value, graph.reshape(table, -1, self.hidden))

    def _attention(self, graph: Graph, names: Names, value: str, at: str, turns: tuple[str, ...]) -> str:
        order = self._rotary_order()

        def heads(name: str, scale: str | None, turned: bool) -> str:
            found = self._linear(graph, names, value, f"{at}{name}_proj", order=self._rows(order) if turned else None)
            found = graph.reshape(found, 0, -1, self.heads, self.head)
            found = norm(graph, found, scale or graph.number(1.0), epsilon=self.epsilon)
            found = graph.reshape(found, 0, -1, self.hidden)
            if not turned:
                return found
            return graph.one("RotaryEmbedding", found, *turns, domain=MICROSOFT, num_heads=self.heads)

        def scale(name: str) -> str:
            tensor = self._norm(names, f"{at}{name}_norm", self.head)
            return graph.vector(replace(tensor, data=tensor.data[order]))

        queries, keys = (heads(name, scale(name), turned=True) for name in "qk")
        values = heads("v", None, turned=False)
        mixed = graph.one(
            "MultiHeadAttention", queries, keys, values, domain=MICROSOFT, num_heads=self.heads, scale=1.0
        )
        return self._linear(graph, names, mixed, f"{at}o_proj")

    def _linear(
        self,
        graph: Graph,
        names: Names,
        value: str,
        name: str,
        sensitive: bool = False,
        order: npt.NDArray[np.intp] | None = None,
    ) -> str:
        """`order` is that of the matrix's rows."""
        weight = self._matrix(names, name)
        if order is not None:
            weight = replace(weight, data=weight.data[order])
        if not self.clipped:
            return graph.linear(value, weight, sensitive=sensitive)
        bounds = [graph.number(self._bound(names, f"{name}.{bound}")[1]) for bound in _BOUNDS]
        found = graph.linear(graph.one("Clip", value, *bounds[:2]), weight, sensitive=sensitive)
        return graph.one("Clip", found, *bounds[2:])

    def _bound(self, names: Names, name: str) -> tuple[Tensor, float]:
        """A bound, and its value; that of one which is infinite is the largest of float32, as in libmtmd."""
        scalar = names.tensor(name, ())
        data = (scalar.data.astype(np.uint32) << 16).view(np.float32) if scalar.dtype == "BF16" else scalar.data
        return scalar, float(np.clip(data, -_UNBOUNDED, _UNBOUNDED))

    def _rotary_order(self) -> npt.NDArray[np.intp]:
        """Values of a head as the operator turns them.

        The model turns the first half by the column and the second by the row, each in halves of its own; the operator
        turns halves of all, by the row first.
        """
        column, column_too, row, row_too = np.arange(self.head, dtype=np.intp).reshape(4, -1)
        return np.concatenate([row, column, row_too, column_too])

    def _rows(self, order: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        rows: npt.NDArray[np.intp] = (np.arange(self.heads)[:, None] * self.head + order).reshape(-1)
        return rows

    def _matrix(self, names: Names, name: str) -> Tensor:
        shape = {"gate_proj": (self.inner, self.hidden), "up_proj": (self.inner, self.hidden)}
        shape["down_proj"] = (self.hidden, self.inner)
        return names.tensor(f"{name}.linear.weight", shape.get(name.rpartition(".")[2], (self.hidden, self.hidden)))

    def _norm(self, names: Names, name: str, size: int) -> Tensor:
        return names.tensor(f"{name}.weight", (size,))

    def _kernel(self, names: Names) -> Tensor:
        """[hidden, 3, patch, patch]."""
        flat = names.tensor("patch_embedder.input_proj.weight", (self.hidden, self.patch**2 * 3))
        return as_kernel(flat, self.patch)

    def _table(self, names: Names) -> Tensor:
        """Positions along the row, then along the column, [2, positions, hidden]."""
        return names.tensor("patch_embedder.position_embedding_table", (2, self.positions, self.hidden))
