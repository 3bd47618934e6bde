"""Qwen2.5-VL: an encoder with attention windows and gated MLPs, and Qwen2-VL's decoder."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.families.qwen2_vl import Qwen2VL
from pocketvlm_converters.networks.decoder import MAX_LAYERS
from pocketvlm_converters.networks.encoder_activations import read_activation
from pocketvlm_converters.networks.feed_forward import refuse_square
from pocketvlm_converters.networks.mrope import EPSILON, MERGE
from pocketvlm_converters.networks.qwen_vit import QwenViT, QwenViTVariant
from pocketvlm_converters.weights import Part

_WINDOW = 112  # pixels along an edge; fixed in libmtmd


class Qwen25VL(Qwen2VL):
    model_types: ClassVar[frozenset[str]] = frozenset({"qwen2_5_vl"})
    projector_type = "qwen2.5vl_merger"

    def projector(self) -> Part:
        part = super().projector()
        rate = self.checkpoint.config.present("vision_config").integer("tokens_per_second", 4)
        return replace(part, metadata={**part.metadata, "pocketvlm.tokens_per_second": rate})

    @cached_property
    def encoder(self) -> QwenViT:
        config = self.read_vision()
        config.require("window_size", _WINDOW, _WINDOW)
        patch = config.integer("patch_size", 14, most=_WINDOW // MERGE)
        encoder = QwenViT(
            QwenViTVariant(read_activation(config, "silu"), up="up_proj", down="down_proj", gate="gate_proj", rms=True),
            hidden=config.integer("hidden_size", 3584),
            inner=config.integer("intermediate_size", 3420),
            layers=config.integer("depth", 32),
            heads=config.integer("num_heads", 16),
            patch=patch,
            merge=MERGE,
            width=config.integer("out_hidden_size", 3584),
            epsilon=EPSILON,
            window=_WINDOW // MERGE // patch,
            full=_full_attention_step(config),
        )
        refuse_square(config, encoder.inner, encoder.hidden)
        return self.check(encoder, config, "out_hidden_size")


def _full_attention_step(config: Section) -> int:
    """Return n if exactly every n-th layer sees the whole picture, which is all that libmtmd supports.

    Raises CheckpointError for any other `fullatt_block_indexes`.
    """
    layers = config.integer("depth", 32, most=MAX_LAYERS)
    listed = {int(index) for index in config.numbers("fullatt_block_indexes", [7, 15, 23, 31])}
    full = sorted(index for index in listed if index < layers)
    for step in range(1, layers + 2):
        if full == list(range(step - 1, layers, step)):
            return step
    raise config.wrong(
        "fullatt_block_indexes", f"libmtmd supports only every n-th of the {layers} layers: n - 1, 2 * n - 1, ..."
    )
