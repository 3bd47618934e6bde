"""Norms of transformer layers, in onnxruntime's fused operators."""

from __future__ import annotations

from pocketvlm_converters.onnx.graph import MICROSOFT, Graph


def add_norm(
    graph: Graph, value: str, change: str, *weights: str, epsilon: float, keep: bool = True
) -> tuple[str, str]:
    """Return (norm(value + change), value + change); without `keep`, do not use the second.

    `weights` are the norm's: scale and shift, or only a scale for a norm by the root of the mean square.
    """
    if len(weights) > 1:
        # SkipLayerNormalization takes four times as long on a CPU.
        total = graph.one("Add", value, change)
        return norm(graph, total, *weights, epsilon=epsilon), total
    outputs = graph.op(
        "SkipSimplifiedLayerNormalization",
        change,
        value,
        *weights,
        domain=MICROSOFT,
        outputs=(True, False, False, True) if keep else (True,),
        epsilon=epsilon,
    )
    return outputs[0], outputs[-1]


def norm(graph: Graph, value: str, *weights: str, epsilon: float) -> str:
    """Return the norm of `value` along the last axis; `weights` as in `add_norm`."""
    if len(weights) > 1:
        return graph.one("LayerNormalization", value, *weights, epsilon=epsilon)
    mean = graph.one("ReduceMean", graph.one("Mul", value, value), axes=[-1])
    root = graph.one("Sqrt", graph.one("Add", mean, graph.number(epsilon)))
    return graph.one("Mul", graph.one("Div", value, root), *weights)
