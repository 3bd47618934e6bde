"""Pieces of transformer layers in onnxruntime's fused operators, shared by the encoders that have them."""

from __future__ import annotations

from pocketvlm_converters.onnx.graph import MICROSOFT, Graph


def add_norm(
    graph: Graph, value: str, change: str, *weights: str, epsilon: float, keep: bool = True
) -> tuple[str, str]:
    """(norm(value + change), value + change); the sum only if it is to be kept.

    `weights` are the norm's: scale and shift, or only a scale for one by the root of the mean square.
    """
    made = graph.op(
        "SkipLayerNormalization" if len(weights) > 1 else "SkipSimplifiedLayerNormalization",
        change,
        value,
        *weights,
        domain=MICROSOFT,
        outputs=(True, False, False, True) if keep else (True,),
        epsilon=epsilon,
    )
    return made[0], made[-1]


def norm(graph: Graph, value: str, *weights: str, epsilon: float) -> str:
    """The norm of `add_norm` by itself, along the last axis."""
    if len(weights) > 1:
        return graph.one("LayerNormalization", value, *weights, epsilon=epsilon)
    mean = graph.one("ReduceMean", graph.one("Mul", value, value), axes=[-1])
    root = graph.one("Sqrt", graph.one("Add", mean, graph.number(epsilon)))
    return graph.one("Mul", graph.one("Div", value, root), *weights)
