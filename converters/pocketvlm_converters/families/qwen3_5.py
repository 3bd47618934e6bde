"""Qwen3.5, 3.6 and 3.8: Qwen3-VL's ViT without deepstack; a hybrid decoder of delta nets and gated attention."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.networks.decoder import DecoderStyle, head_width
from pocketvlm_converters.networks.gated_delta_decoder import gated_delta_decoder
from pocketvlm_converters.networks.mrope import MRopeFamily
from pocketvlm_converters.networks.qwen3_vit import qwen3_vit
from pocketvlm_converters.networks.qwen_vit import QwenViT
from pocketvlm_converters.networks.rope import read_rope, rotary_width
from pocketvlm_converters.tokenizer.pre_tokenizer import PreTokenizer
from pocketvlm_converters.weights import Part

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_ROTATED = 0.25  # of each head
_SECTIONS = (11, 11, 10)  # frequencies of time, height and width
_PREDICTION = ("mtp.", "model.mtp.")  # tensors of multi-token prediction


class Qwen35(MRopeFamily):
    model_types: ClassVar[frozenset[str]] = frozenset({"qwen3_5"})
    other_formats: ClassVar[Mapping[str, str]] = {
        "qwen3_5_moe": "a mixture of experts, which is not supported; use a dense model such as Qwen/Qwen3.5-9B",
        "qwen3_5_text": "a language model without a vision encoder; use the checkpoint of model_type qwen3_5",
    }
    projector_type = "qwen3vl_merger"
    style = DecoderStyle(  # defaults are those of transformers' Qwen3_5TextConfig
        "qwen35",
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "vocab_size": 248320,
            "max_position_embeddings": 32768,
        },
    )
    theta = 10000.0
    video_pixels = (128 * 32 * 32, 768 * 32 * 32)
    pre_tokenizers: ClassVar[tuple[PreTokenizer, ...]] = (
        PreTokenizer("qwen35", (("Split", _WORDS, "Isolated"), ("ByteLevel", "bytes"))),
    )

    def language(self) -> Part:
        config, text = self.checkpoint.config, self.checkpoint.config.present("text_config")
        text.require("model_type", "qwen3_5_text", "qwen3_5_text")
        rotated = rotary_width(text, head_width(text, self.style), _ROTATED)
        self.names(_PREDICTION).ignore("")
        return gated_delta_decoder(
            text,
            self.names(("model.language_model.",)),
            self.names(("",)),
            tied=config.flag("tie_word_embeddings", False) or text.flag("tie_word_embeddings", False),
            style=self.style,
            rope=read_rope(text, rotated, self.theta, interleaved=True, partial=True, sections=_SECTIONS),
            rotated=rotated,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        names = self.names(_PREDICTION)
        if not any(name.startswith(names.prefix) for name in self.checkpoint.tensors):
            return ()
        return (f"the layer that predicts further tokens ({names.prefix}*) is left out, as in transformers",)

    @cached_property
    def encoder(self) -> QwenViT:
        config = self.read_vision()
        config.require("deepstack_visual_indexes", [], [])
        return self.check(qwen3_vit(config), config, "out_hidden_size")
