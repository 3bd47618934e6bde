"""PaddleOCR-VL: SigLIP with rotary positions for pictures of any size, and an ERNIE 4.5 decoder with M-RoPE."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from math import isqrt
from typing import ClassVar

from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.decoder import DecoderStyle
from pocketvlm_converters.networks.mrope import MERGE, MRopeFamily
from pocketvlm_converters.networks.paddleocr_vit import ProjectedPaddleOCRViT, paddleocr_vit
from pocketvlm_converters.weights import Part

_UNUSED = ("embeddings.packing_position_embedding.", "head.")  # of the encoder; the reference ignores them, too


class PaddleOCRVL(MRopeFamily):
    model_types: ClassVar[frozenset[str]] = frozenset({"paddleocr_vl"})
    projector_type = "paddleocr"
    style = DecoderStyle(  # defaults are those of transformers' PaddleOCRTextConfig
        "paddleocr",
        qkv_bias=False,
        epsilon=1e-5,
        defaults={
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 18,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "vocab_size": 103424,
            "max_position_embeddings": 131072,
        },
    )
    theta = 500000.0
    pixels = (384 * 384, 1536 * 1536)
    tied = True
    temporal = 1

    def language(self) -> Part:
        self.text.require("use_bias", False, False)
        return super().language()

    def projector(self) -> Part:
        part = super().projector()
        _, most = self._limits()  # as llama.cpp's own converter writes it; it has no effect
        return replace(part, metadata={**part.metadata, "clip.vision.image_size": isqrt(most)})

    @cached_property
    def encoder(self) -> ProjectedPaddleOCRViT:
        width = self.text.integer("hidden_size", self.style.defaults["hidden_size"])
        connector = self.names(("model.projector.", "mlp_AR."))
        return ProjectedPaddleOCRViT(paddleocr_vit(self.read_vision()), MERGE, width, connector)

    def _visual(self) -> Names:
        names = self.names(("model.visual.vision_model.", "visual.vision_model."))
        for unused in _UNUSED:
            names.ignore(unused)
        return names
