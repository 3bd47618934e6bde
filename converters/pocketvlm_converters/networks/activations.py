"""Activations of vision encoders, by the names that configurations use: as libmtmd's keys and as operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.weights import Value


@dataclass(frozen=True)
class Activation:
    """`keys` tell libmtmd, which without any takes the sigmoid approximation of GELU ("quick")."""

    keys: Mapping[str, Value]
    operator: str  # of onnxruntime
    attributes: Mapping[str, float] = field(default_factory=dict)

    def add(self, graph: Graph, value: str) -> str:
        return graph.one(self.operator, value, domain=MICROSOFT, **self.attributes)


_TANH = Activation({"clip.use_gelu": True}, "FastGelu")
ACTIVATIONS = {
    "gelu_pytorch_tanh": _TANH,
    "gelu_new": _TANH,
    "silu": Activation({"clip.use_silu": True}, "QuickGelu", {"alpha": 1.0}),  # x * sigmoid(alpha * x)
    "quick_gelu": Activation({}, "QuickGelu", {"alpha": 1.702}),
}


def read_activation(config: Section, default: str) -> Activation:
    """`hidden_act` of a vision configuration; CheckpointError where libmtmd does not have it."""
    found = ACTIVATIONS.get(config.text("hidden_act", default))
    if found is None:
        raise config.wrong("hidden_act", f"libmtmd has {', '.join(ACTIVATIONS)}")
    return found
