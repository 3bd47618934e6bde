"""Qwen3-VL: a ViT with rotary and learned positions and deepstack projectors, a decoder with interleaved M-RoPE."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.networks.decoder import DecoderStyle
from pocketvlm_converters.networks.mrope import MRopeFamily
from pocketvlm_converters.networks.qwen3_vit import qwen3_vit
from pocketvlm_converters.networks.qwen_vit import QwenViT
from pocketvlm_converters.weights import Part


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
    video_pixels = (128 * 32 * 32, 768 * 32 * 32)

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
        encoder = qwen3_vit(config)
        return self.check(replace(encoder, deepstack=_deepstack(config, encoder.layers)), config, "out_hidden_size")


def _deepstack(config: Section, layers: int) -> tuple[int, ...]:
    """Return the layers with projectors of their own. libmtmd uses them in rising order only."""
    indexes = config.numbers("deepstack_visual_indexes", [8, 16, 24])
    if indexes != sorted({int(layer) for layer in indexes if 0 <= layer < layers}):
        raise config.wrong("deepstack_visual_indexes", f"expected layers from 0 to {layers - 1}, in rising order")
    return tuple(map(int, indexes))
