"""Qwen2-VL: a ViT with 2-D rotary positions and a decoder with M-RoPE. Pictures keep about their own size."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.networks.decoder import DecoderStyle, head_width
from pocketvlm_converters.networks.encoder_activations import read_activation
from pocketvlm_converters.networks.feed_forward import refuse_square
from pocketvlm_converters.networks.mrope import EPSILON, MERGE, MRopeFamily
from pocketvlm_converters.networks.qwen_vit import QwenViT, QwenViTVariant
from pocketvlm_converters.weights import Part

_MAX_PATCH = 64  # pixels; four times what encoders have


class Qwen2VL(MRopeFamily):
    model_types: ClassVar[frozenset[str]] = frozenset({"qwen2_vl"})
    projector_type = "qwen2vl_merger"
    style = DecoderStyle(  # defaults are those of transformers' Qwen2VLTextConfig
        "qwen2vl",
        qkv_bias=True,
        epsilon=1e-5,
        defaults={
            "hidden_size": 8192,
            "intermediate_size": 29568,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
            "max_position_embeddings": 32768,
        },
    )
    theta = 1000000.0
    video_pixels = (128 * 28 * 28, 768 * 28 * 28)

    def language(self) -> Part:
        heads, hidden = (
            self.text.integer(key, self.style.defaults[key]) for key in ("num_attention_heads", "hidden_size")
        )
        if head_width(self.text, self.style) * heads != hidden:
            raise CheckpointError(
                "hidden_size must be head_dim * num_attention_heads, because libllama assumes it", self.text.path
            )
        return super().language()

    @cached_property
    def encoder(self) -> QwenViT:
        config = self.read_vision()
        hidden, ratio = config.integer("embed_dim", 1280), config.integer("mlp_ratio", 4)
        refuse_square(config, hidden * ratio, hidden, "mlp_ratio")
        encoder = QwenViT(
            QwenViTVariant(read_activation(config, "quick_gelu"), up="fc1", down="fc2"),
            hidden=hidden,
            inner=hidden * ratio,
            layers=config.integer("depth", 32),
            heads=config.integer("num_heads", 16),
            patch=config.integer("patch_size", 14, most=_MAX_PATCH),
            merge=MERGE,
            width=config.integer("hidden_size", 3584),
            epsilon=EPSILON,
        )
        return self.check(encoder, config, "hidden_size")
