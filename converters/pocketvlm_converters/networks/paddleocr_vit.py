"""PaddleOCR-VL's vision transformer: SigLIP's with rotary positions besides, for pictures of any size.

A norm and two matrices merge neighbouring patches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.resampled_siglip import ResampledSigLIP
from pocketvlm_converters.networks.siglip import siglip
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.grid import Grid
from pocketvlm_converters.onnx.layers import norm
from pocketvlm_converters.onnx.patches import Normalization
from pocketvlm_converters.weights import Value, Weight

_DEFAULTS = {  # transformers' PaddleOCRVisionConfig
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_EPSILON = 1e-5  # of the projector's norm; fixed on both sides
_MAX_PATCH = 64  # pixels; four times what encoders have


@dataclass(frozen=True)
class PaddleOCRViT(ResampledSigLIP):
    """Sizes of the encoder, whose positions are rotary, too."""

    wider: ClassVar[bool] = False

    def rotation(self, graph: Graph, group: int) -> Callable[[str], str]:
        angles = (graph.integers(0), *Grid(graph, self.patch, group).angles(self.hidden // self.heads))
        return lambda value: graph.one("RotaryEmbedding", value, *angles, domain=MICROSOFT, num_heads=self.heads)


@dataclass(frozen=True)
class ProjectedPaddleOCRViT:
    """The encoder with its projector: `merge` x `merge` patches become an embedding of `width` values.

    `connector` has the projector's tensors.
    """

    encoder: PaddleOCRViT
    merge: int
    width: int
    connector: Names

    @property
    def patch(self) -> int:
        return self.encoder.patch

    @property
    def row(self) -> int:
        return self.width

    @property
    def table(self) -> int:
        return self.encoder.side

    @property
    def merged(self) -> int:
        """The width of a square of patches."""
        return self.encoder.hidden * self.merge**2

    def metadata(self) -> dict[str, Value]:
        return {**self.encoder.metadata(), "clip.vision.projection_dim": self.width}

    def weights(self, names: Names) -> list[Weight]:
        weights = self.encoder.weights(names)
        weights += (Weight(f"mm.input_norm.{part}", tensor, exact=True) for part, tensor in self._norm().items())
        for number in (1, 2):
            weight, bias = self._linear(number)
            weights += (Weight(f"mm.{number}.weight", weight), Weight(f"mm.{number}.bias", bias, exact=True))
        return weights

    def graph(self, graph: Graph, names: Names, pixels: Normalization) -> str:
        """Add encoder and projector to `graph` and return the output, [tiles, embeddings, width]."""
        value = self.encoder.graph(graph, names, pixels, self.merge)
        value = norm(graph, value, *map(graph.vector, self._norm().values()), epsilon=_EPSILON)
        value = graph.reshape(value, 0, -1, self.merged)
        value = graph.linear(value, *self._linear(1), sensitive=True)
        value = graph.one("Gelu", value, domain=MICROSOFT)
        return graph.linear(value, *self._linear(2), sensitive=True)

    def _norm(self) -> dict[str, Tensor]:
        return {part: self.connector.tensor(f"pre_norm.{part}", (self.encoder.hidden,)) for part in ("weight", "bias")}

    def _linear(self, number: int) -> tuple[Tensor, Tensor]:
        """Return a matrix and its bias."""
        name, rows = f"linear_{number}", self.merged if number == 1 else self.width
        weight = self.connector.tensor(f"{name}.weight", (rows, self.merged))
        return weight, self.connector.tensor(f"{name}.bias", (rows,))


def paddleocr_vit(config: Section) -> PaddleOCRViT:
    """Read a vision configuration, with the defaults of transformers' PaddleOCRVisionConfig. Raises CheckpointError."""
    config.require("hidden_act", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    encoder = siglip(config, **_DEFAULTS)
    if encoder.hidden % (4 * encoder.heads):
        raise config.wrong("num_attention_heads", f"hidden_size {encoder.hidden} must be a multiple of 4 times it")
    if encoder.patch > _MAX_PATCH:
        raise config.wrong("patch_size", f"at most {_MAX_PATCH} pixels are supported")
    return PaddleOCRViT(**vars(encoder))
