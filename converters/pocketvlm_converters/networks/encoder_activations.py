"""Activations of vision encoders by their names in configurations: libmtmd's keys and onnxruntime's operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.weights import Value


@dataclass(frozen=True)
class Activation:
    """An activation in both runtimes.

    `keys` select it in libmtmd; without any, libmtmd uses the sigmoid approximation of GELU ("quick"). `lowest` is the
    smallest value that it returns, rounded down.
    """

    keys: Mapping[str, Value]
    operator: str  # onnxruntime's, in the domain com.microsoft
    lowest: float
    attributes: Mapping[str, float] = field(default_factory=dict)

    def add(self, graph: Graph, value: str) -> str:
        """Add the operator to `graph` and return the name of its output."""
        return graph.one(self.operator, value, domain=MICROSOFT, **self.attributes)


LOWEST_GELU = -0.171  # of either form
_TANH = Activation({"clip.use_gelu": True}, "FastGelu", LOWEST_GELU)
ACTIVATIONS = {
    "gelu_pytorch_tanh": _TANH,
    "gelu_new": _TANH,
    "silu": Activation({"clip.use_silu": True}, "QuickGelu", -0.279, {"alpha": 1.0}),  # x * sigmoid(alpha * x)
    "quick_gelu": Activation({}, "QuickGelu", -0.164, {"alpha": 1.702}),
}


def read_activation(config: Section, default: str) -> Activation:
    """Return the activation named by `hidden_act`. Raises CheckpointError if libmtmd does not have it."""
    activation = ACTIVATIONS.get(config.text("hidden_act", default))
    if activation is None:
        raise config.wrong("hidden_act", f"libmtmd supports {', '.join(ACTIVATIONS)}")
    return activation
