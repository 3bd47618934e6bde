"""CLIP's vision transformer: SigLIP's with a class token before the patches and a norm before the layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.siglip import SigLIP, read_encoder
from pocketvlm_converters.onnx.graph import Graph
from pocketvlm_converters.onnx.layers import norm
from pocketvlm_converters.onnx.patches import Normalization, fold_normalization
from pocketvlm_converters.onnx.weights import floats

_DEFAULTS = {  # transformers' CLIPVisionConfig
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}


@dataclass(frozen=True)
class CLIP(SigLIP):
    """Sizes of the encoder. `graph` drops the class token: no projector here uses it."""

    def input_tensors(self, names: Names) -> dict[str, Tensor]:
        return {
            "v.class_embd": self._class_token(names),
            "v.patch_embd.weight": self.kernel(names),
            "v.position_embd.weight": self._position_table(names),
            "v.pre_ln.weight": names.tensor("pre_layrnorm.weight", (self.hidden,)),
            "v.pre_ln.bias": names.tensor("pre_layrnorm.bias", (self.hidden,)),
        }

    def graph(self, graph: Graph, names: Names, pixels: Normalization, group: int) -> str:
        value = super().graph(graph, names, pixels, group)
        one = graph.integers(1)
        return graph.one("Slice", value, one, graph.integers(self.side**2 + 1), one)

    def embed(self, graph: Graph, names: Names, pixels: Normalization, group: int) -> str:
        """Return the normed input of the first layer, [tiles, 1 + side * side, hidden].

        The class token is a row of zeros before the patches, to which its vector and its position are added.
        """
        assert group == 1, "no projector of CLIP merges patches"
        value, offset = self.embed_patches(graph, names, pixels, group)
        value = graph.one("Pad", value, graph.integers(0, 1, 0, 0, 0, 0))
        table = floats(self._position_table(names)).astype(np.float64)
        table[0] += floats(self._class_token(names))
        table[1:] += offset
        value = graph.one("Add", value, graph.constant("position_embedding", table[None].astype(np.float32)))
        return norm(graph, value, *self.norm(graph, names, "pre_layrnorm"), epsilon=self.epsilon)

    def patch_matrix(
        self, names: Names, pixels: Normalization
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Return what SigLIP does, for a patch convolution without a bias."""
        return fold_normalization(floats(self.kernel(names)), pixels)

    def _class_token(self, names: Names) -> Tensor:
        return names.tensor("embeddings.class_embedding", (self.hidden,))

    def _position_table(self, names: Names) -> Tensor:
        return names.tensor("embeddings.position_embedding.weight", (self.side**2 + 1, self.hidden))


def clip(config: Section) -> CLIP:
    """Read a vision configuration, with the defaults of transformers' CLIPVisionConfig."""
    return read_encoder(config, CLIP, 1e-5, "quick_gelu", **_DEFAULTS)
