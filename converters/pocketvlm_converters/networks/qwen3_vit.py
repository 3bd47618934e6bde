"""The `QwenViT` of Qwen3-VL and later: learned positions, and one matrix of queries, keys and values in each layer."""

from __future__ import annotations

import math

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.networks.decoder import MAX_LAYERS
from pocketvlm_converters.networks.encoder_activations import read_activation
from pocketvlm_converters.networks.mrope import EPSILON, MERGE
from pocketvlm_converters.networks.qwen_vit import QwenViT, QwenViTVariant

_MAX_PATCH = 64  # pixels; four times what encoders have
_MAX_POSITIONS = 1 << 16  # bounds what a damaged file can ask for; models have 2304


def qwen3_vit(config: Section) -> QwenViT:
    """Read a vision configuration, with the defaults of transformers' Qwen3VLVisionConfig. Raises CheckpointError.

    The encoder has no deepstack projectors.
    """
    return QwenViT(
        QwenViTVariant(
            read_activation(config, "gelu_pytorch_tanh"),
            up="linear_fc1",
            down="linear_fc2",
            merger=("norm", "linear_fc1", "linear_fc2"),
            fused=True,
        ),
        hidden=config.integer("hidden_size", 1152),
        inner=config.integer("intermediate_size", 4304),
        layers=config.integer("depth", 27, most=MAX_LAYERS),
        heads=config.integer("num_heads", 16),
        patch=config.integer("patch_size", 16, most=_MAX_PATCH),
        merge=MERGE,
        width=config.integer("out_hidden_size", 3584),
        epsilon=EPSILON,
        table=_table(config),
    )


def _table(config: Section) -> int:
    """Return the number of learned positions along an edge."""
    count = config.integer("num_position_embeddings", 2304, least=4, most=_MAX_POSITIONS)
    if math.isqrt(count) ** 2 != count:
        raise config.wrong("num_position_embeddings", "it must be a square number")
    return math.isqrt(count)
