"""SigLIP 2 in its SigLIP2NaFlex form (arXiv 2502.14786): pictures of any size, as GGUF and as ONNX.

A linear layer embeds patches, and a square table of positions is resampled to the picture's grid of patches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.resampled_siglip import ResampledSigLIP
from pocketvlm_converters.networks.siglip import siglip
from pocketvlm_converters.onnx.patches import as_kernel


@dataclass(frozen=True)
class SigLIP2NaFlex(ResampledSigLIP):
    """Sizes of the encoder. `side` is the edge of the position table; pictures of `image` pixels need no resampling."""

    def kernel(self, names: Names) -> Tensor:
        """Return the patch convolution, [hidden, 3, patch, patch]."""
        flat = names.tensor("embeddings.patch_embedding.weight", (self.hidden, self.patch**2 * 3))
        return as_kernel(flat, self.patch)


def siglip2_naflex(config: Section) -> SigLIP2NaFlex:
    """Read a vision configuration, with the defaults of transformers' Siglip2VisionConfig. Raises CheckpointError."""
    config.require("model_type", "siglip2_vision_model", "siglip2_vision_model")
    patches, patch = config.integer("num_patches", 256), config.integer("patch_size", 16)
    side = isqrt(patches)
    if side**2 != patches:
        raise CheckpointError(f"vision_config.num_patches is {patches}; it must be a square number", config.path)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    encoder = siglip(config, **sizes, image_size=side * patch, patch_size=16)
    return SigLIP2NaFlex(**vars(replace(encoder, image=side * patch)))
