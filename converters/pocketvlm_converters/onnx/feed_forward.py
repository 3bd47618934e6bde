"""The feed-forward layer of a transformer's layer, with both of its matrices in the graph's type.

In int8, the second matrix is the difficult one. Its input has a few channels with most of the energy, and rows of very
different sizes. So the channels with the most energy are computed in float, and each row of the others has its own
scale. The rows of the first matrices are split in the same way, which costs nothing: activations are element-wise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.onnx.graph import Graph

_FLOAT_SHARE = 16  # of this number of channels, one stays in float
# How int8 encoders are made, for their metadata.
METHOD = f"1/{_FLOAT_SHARE} of the MLPs' inner channels in float16, errors cancelled for samples of the inputs"


@dataclass(frozen=True)
class Matrix:
    """A matrix [out, in] with its bias, and the value that it is multiplied with."""

    value: str
    weight: Tensor
    bias: Tensor | None = None

    def rows(self, part: str, index: Any) -> Matrix:
        """Return the rows `index`, named as the `part`."""
        bias = None if self.bias is None else _named(self.bias[index], self.bias, part)
        return Matrix(self.value, _named(self.weight[index], self.weight, part), bias)


def feed_forward(
    graph: Graph,
    first: Sequence[Matrix],
    activate: Callable[..., str],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    lowest: float | None = None,
) -> str:
    """Add a feed-forward layer and return its output.

    `first` are the matrices before the activation: one, or gate and up. `activate` adds the activation to the graph,
    element-wise, and returns its output. `weight` and `bias` are those of the second matrix. `lowest` is the smallest
    value that the activation returns, None if there is none.
    """
    if graph.kind != "int8":
        inner = activate(*(graph.linear(matrix.value, matrix.weight, matrix.bias) for matrix in first))
        return graph.linear(inner, weight, bias)
    samples = graph.samples_of(weight)
    count = max(1, weight.shape[1] // _FLOAT_SHARE)
    loud: Any = slice(0, count)
    others: Any = slice(count, None)
    if samples is not None:
        order = np.argsort(-np.square(samples).mean(axis=0), kind="stable")
        loud, others = np.sort(order[:count]), np.sort(order[count:])
    flat = {matrix.value: graph.reshape(matrix.value, -1, matrix.weight.shape[1]) for matrix in first}

    def inner_part(part: str, index: Any) -> str:
        products = []
        for matrix in first:
            rows = matrix.rows(part, index)
            inputs = graph.samples_of(matrix.weight)
            products.append(graph.linear(flat[matrix.value], rows.weight, rows.bias, inputs=inputs))
        return activate(*products)

    in_int8 = graph.linear_by_rows(
        inner_part("others", others),
        _named(weight[:, others], weight, "others"),
        lowest,
        None if samples is None else samples[:, others],
    )
    in_float = graph.linear(inner_part("loud", loud), _named(weight[:, loud], weight, "loud"), bias, sensitive=True)
    return graph.one("Reshape", graph.one("Add", in_int8, in_float), graph.one("Shape", first[0].value))


def _named(part: Tensor, whole: Tensor, name: str) -> Tensor:
    stem, _, kind = whole.label.rpartition(".")
    return replace(part, given_label=f"{stem}.{name}.{kind}")
