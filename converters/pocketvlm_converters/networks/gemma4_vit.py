"""Gemma 4's vision transformer, for pictures of any size, as GGUF and as ONNX.

Positions come from a table for each axis and are rotary as well. Layers have norms before and after attention and MLP;
MLPs are gated, activations clipped, and neighbouring patches are pooled by their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.checkpoint.safetensors import as_floats
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.sizes import layer_sizes
from pocketvlm_converters.onnx.feed_forward import Matrix, feed_forward
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.grid import Grid
from pocketvlm_converters.onnx.layers import norm
from pocketvlm_converters.onnx.patches import Normalization, as_kernel, cut_patches, fold_normalization
from pocketvlm_converters.onnx.weights import floats
from pocketvlm_converters.weights import Value, Weight

_PIXELS = Normalization((0.5,) * 3, (0.5,) * 3)  # built into the model: 2 * pixel - 1
_THETA = 100.0  # of rotary positions; fixed in libmtmd
_UNBOUNDED = float(np.finfo(np.float32).max)  # as in libmtmd; stands for an infinite bound
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
    """Sizes of the encoder. `pool` x `pool` patches become one embedding.

    `positions` is the number of rows of each axis's table. `clipped`: every matrix has bounds for its input and output.
    `standard`: the pooled values are shifted and scaled.
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
        """The width of one head."""
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
        weights = [
            Weight("v.patch_embd.weight", self._kernel(names), exact=True),
            Weight("v.position_embd.weight", self._position_table(names), exact=True),
        ]
        for layer in range(self.layers):
            source, target = f"encoder.layers.{layer}.", f"v.blk.{layer}."
            for gguf, name in _NORMS.items():
                weights.append(
                    Weight(f"{target}{gguf}.weight", self._norm(names, source + name, self.hidden), exact=True)
                )
            for gguf, name in (("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")):
                weights.append(
                    Weight(f"{target}{gguf}.weight", self._norm(names, source + name, self.head), exact=True)
                )
            for gguf, name in _MATRICES.items():
                weights.append(Weight(f"{target}{gguf}.weight", self._matrix(names, source + name)))
                for bound in _BOUNDS if self.clipped else ():
                    scalar, value = self._bound(names, f"{source}{name}.{bound}")
                    if abs(value) < _UNBOUNDED:
                        scalar = scalar.view(lambda data: data.reshape(1))
                        weights.append(Weight(f"{target}{gguf}.{bound}", scalar, exact=True))
        if self.standard:
            weights += [
                Weight(f"v.{name}", names.tensor(name, (self.hidden,)), exact=True)
                for name in ("std_bias", "std_scale")
            ]
        return weights

    def graph(self, graph: Graph, names: Names) -> str:
        """Add the encoder to `graph` and return its pooled output, [tiles, embeddings, hidden]."""
        grid = Grid(graph, self.patch, self.pool)
        angles = (graph.integers(0), *grid.angles(self.head, _THETA))
        value = self._embed(graph, names, grid)

        def normed(value: str, name: str) -> str:
            return norm(graph, value, graph.vector(self._norm(names, name, self.hidden)), epsilon=self.epsilon)

        for layer in range(self.layers):
            prefix = f"encoder.layers.{layer}."
            mixed = self._attention(
                graph, names, normed(value, f"{prefix}input_layernorm"), f"{prefix}self_attn.", angles
            )
            value = graph.one("Add", value, normed(mixed, f"{prefix}post_attention_layernorm"))
            mlp_input = normed(value, f"{prefix}pre_feedforward_layernorm")
            inner = self._feed_forward(graph, names, mlp_input, f"{prefix}mlp.")
            value = graph.one("Add", value, normed(inner, f"{prefix}post_feedforward_layernorm"))
        # Patches are already ordered by squares: the mean over a square is the mean over an axis.
        value = graph.reshape(value, 0, -1, self.pool**2, self.hidden)
        value = graph.one("ReduceMean", value, axes=[2], keepdims=0)
        value = graph.one("Mul", value, graph.number(math.sqrt(self.hidden)))
        if self.standard:
            bias, scale = (graph.vector(names.tensor(name, (self.hidden,))) for name in ("std_bias", "std_scale"))
            value = graph.one("Mul", graph.one("Sub", value, bias), scale)
        return value

    def _embed(self, graph: Graph, names: Names, grid: Grid) -> str:
        value = cut_patches(graph, self.patch, self.pool, grid.rows, grid.cols)
        matrix, offset = fold_normalization(floats(self._kernel(names)), _PIXELS)
        value = graph.one("MatMul", value, graph.constant("patch_embedding", matrix))
        across, down = floats(self._position_table(names))
        down = (down + offset).astype(np.float32)
        axes, pool = graph.integers(0), graph.integers(self.pool)

        def first_rows(name: str, table: npt.NDArray[np.float32], squares: str) -> str:
            return graph.one("Slice", graph.constant(name, table), axes, graph.one("Mul", squares, pool), axes)

        rows = graph.reshape(first_rows("row_embedding", down, grid.rows), -1, 1, self.hidden)
        table = graph.one("Add", rows, first_rows("column_embedding", across, grid.cols))
        table = graph.reshape(table, grid.rows, self.pool, grid.cols, self.pool, self.hidden)
        table = graph.one("Transpose", table, perm=[0, 2, 1, 3, 4])
        return graph.one("Add", value, graph.reshape(table, -1, self.hidden))

    def _attention(self, graph: Graph, names: Names, value: str, prefix: str, angles: tuple[str, ...]) -> str:
        order = self._rotary_order()

        def heads(name: str, scale: str | None, rotated: bool) -> str:
            values = self._linear(
                graph, names, value, f"{prefix}{name}_proj", order=self._rows(order) if rotated else None
            )
            values = graph.reshape(values, 0, -1, self.heads, self.head)
            values = norm(graph, values, scale or graph.number(1.0), epsilon=self.epsilon)
            values = graph.reshape(values, 0, -1, self.hidden)
            if not rotated:
                return values
            return graph.one("RotaryEmbedding", values, *angles, domain=MICROSOFT, num_heads=self.heads)

        def scale(name: str) -> str:
            tensor = self._norm(names, f"{prefix}{name}_norm", self.head)
            return graph.vector(tensor[order])

        queries, keys = (heads(name, scale(name), rotated=True) for name in "qk")
        values = heads("v", None, rotated=False)
        mixed = graph.one(
            "MultiHeadAttention", queries, keys, values, domain=MICROSOFT, num_heads=self.heads, scale=1.0
        )
        return self._linear(graph, names, mixed, f"{prefix}o_proj")

    def _feed_forward(self, graph: Graph, names: Names, value: str, prefix: str) -> str:
        """Apply the gated MLP. Each of its matrices clips input and output to its bounds."""
        matrices = [prefix + name for name in ("gate_proj", "up_proj", "down_proj")]
        clips = [self._clips(graph, names, name) for name in matrices]
        *first, last = (self._matrix(names, name) for name in matrices)

        def activate(gate: str, up: str) -> str:
            gate = graph.one("FastGelu", clips[0][1](gate), domain=MICROSOFT)
            return clips[2][0](graph.one("Mul", gate, clips[1][1](up)))

        inputs = [Matrix(before(value), weight) for (before, _), weight in zip(clips, first, strict=False)]
        return clips[2][1](feed_forward(graph, inputs, activate, last))

    def _linear(
        self, graph: Graph, names: Names, value: str, name: str, order: npt.NDArray[np.intp] | None = None
    ) -> str:
        """Multiply by the matrix `name` with its rows in `order`, and clip input and output to its bounds."""
        weight = self._matrix(names, name)
        if order is not None:
            weight = weight[order]
        before, after = self._clips(graph, names, name)
        return after(graph.linear(before(value), weight))

    def _clips(self, graph: Graph, names: Names, name: str) -> tuple[Callable[[str], str], Callable[[str], str]]:
        """Return what clips input and output of the matrix `name` to its bounds, if the encoder has any."""
        if not self.clipped:
            return str, str
        bounds = [graph.number(self._bound(names, f"{name}.{bound}")[1]) for bound in _BOUNDS]

        def clip(value: str, lower: str, upper: str) -> str:
            return graph.one("Clip", value, lower, upper)

        return (
            partial(clip, lower=bounds[0], upper=bounds[1]),
            partial(clip, lower=bounds[2], upper=bounds[3]),
        )

    def _bound(self, names: Names, name: str) -> tuple[Tensor, float]:
        """Return a bound as a tensor and as a number: `_UNBOUNDED` if it is infinite."""
        scalar = names.tensor(name, ())
        return scalar, float(np.clip(as_floats(scalar.values()), -_UNBOUNDED, _UNBOUNDED))

    def _rotary_order(self) -> npt.NDArray[np.intp]:
        """Return the order of a head's values for the operator RotaryEmbedding.

        The model rotates the first half of a head by the column and the second by the row, and pairs values within
        each. The operator pairs values of the first half with those of the second, and our angles start with the row.
        """
        column_1, column_2, row_1, row_2 = np.arange(self.head, dtype=np.intp).reshape(4, -1)
        return np.concatenate([row_1, column_1, row_2, column_2])

    def _rows(self, order: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Return the rows of a matrix whose heads all have their values in `order`."""
        rows: npt.NDArray[np.intp] = (np.arange(self.heads)[:, None] * self.head + order).reshape(-1)
        return rows

    def _matrix(self, names: Names, name: str) -> Tensor:
        shape = {"gate_proj": (self.inner, self.hidden), "up_proj": (self.inner, self.hidden)}
        shape["down_proj"] = (self.hidden, self.inner)
        return names.tensor(f"{name}.linear.weight", shape.get(name.rpartition(".")[2], (self.hidden, self.hidden)))

    def _norm(self, names: Names, name: str, size: int) -> Tensor:
        return names.tensor(f"{name}.weight", (size,))

    def _kernel(self, names: Names) -> Tensor:
        """Return the patch convolution, [hidden, 3, patch, patch]."""
        flat = names.tensor("patch_embedder.input_proj.weight", (self.hidden, self.patch**2 * 3))
        return as_kernel(flat, self.patch)

    def _position_table(self, names: Names) -> Tensor:
        """Return the positions across and down, [2, positions, hidden]."""
        return names.tensor("patch_embedder.position_embedding_table", (2, self.positions, self.hidden))
