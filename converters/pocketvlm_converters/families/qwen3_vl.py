"""Qwen3-VL: a ViT with rotary and learned positions and deepstack projectors, a decoder with interleaved M-RoPE."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.networks.decoder import MAX_LAYERS, DecoderStyle
from pocketvlm_converters.networks.encoder_activations import read_activation
from pocketvlm_converters.networks.mrope import EPSILON, MERGE, MRopeFamily
from pocketvlm_converters.networks.qwen_vit import QwenViT, QwenViTVariant
from pocketvlm_converters.weights import Part

_MAX_PATCH = 64  # pixels; four times what encoders have
_MAX_POSITIONS = 1 << 16  # bounds what a damaged file can ask for; models have 2304


class Qwen3VL(MRopeFamily):
    model_types: ClassVar[frozenset[str]] = frozenset({"qwen3_vl"})
    projector_type = "qwen3vl_merger"
    style = DecoderStyle(  # defaults are those of transformers' Qwen3VLTextConfig
        "qwen3vl",
        qkv_bias=False,
        head_norms={"attn_q_norm": "q_norm", "attn_k_norm": "k_norm"},
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 128000,
        },
    )
    theta = 500000.0
    interleaved = True

    def language(self) -> Part:
        self.text.require("attention_bias", False, False)
        part, deepstack = super().language(), self.encoder.deepstack
        layers = self.text.integer("num_hidden_layers", self.style.defaults["num_hidden_layers"])
        if len(deepstack) >= layers:  # libllama computes its last layer for some tokens only, and aborts
            raise self.text.wrong(
                "num_hidden_layers", f"it must be above {len(deepstack)}, the number of deepstack layers"
            )
        return replace(part, metadata={**part.metadata, f"{part.architecture}.n_deepstack_layers": len(deepstack)})

    @cached_property
    def encoder(self) -> QwenViT:
        config = self.read_vision()
        layers = config.integer("depth", 27, most=MAX_LAYERS)
        encoder = QwenViT(
            QwenViTVariant(
                read_activation(config, "gelu_pytorch_tanh"),
                up="linear_fc1",
                down="linear_fc2",
                merger=("norm", "linear_fc1", "linear_fc2"),
                fused=True,
            ),
            hidden=config.integer("hidden_size", 1152),
            inner=config.integer("intermediate_size", 4304),
            layers=layers,
            heads=config.integer("num_heads", 16),
            patch=config.integer("patch_size", 16, most=_MAX_PATCH),
            merge=MERGE,
            width=config.integer("out_hidden_size", 3584),
            epsilon=EPSILON,
            table=_table(config),
            deepstack=_deepstack(config, layers),
        )
        return self.check(encoder, config, "out_hidden_size")


def _table(config: Section) -> int:
    """Return the number of learned positions along an edge."""
    count = config.integer("num_position_embeddings", 2304, least=4, most=_MAX_POSITIONS)
    if math.isqrt(count) ** 2 != count:
        raise config.wrong("num_position_embeddings", "it must be a square number")
    return math.isqrt(count)


def _deepstack(config: Section, layers: int) -> tuple[int, ...]:
    """Return the layers with projectors of their own. libmtmd uses them in rising order only."""
    indexes = config.numbers("deepstack_visual_indexes", [8, 16, 24])
    if indexes != sorted({int(layer) for layer in indexes if 0 <= layer < layers}):
        raise config.wrong("deepstack_visual_indexes", f"expected layers from 0 to {layers - 1}, in rising order")
    return tuple(map(int, indexes))
