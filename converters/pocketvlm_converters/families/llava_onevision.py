"""LLaVA-OneVision: LLaVA-NeXT's tiles, SigLIP, and a Qwen2 decoder; the embeddings of many tiles are shrunk."""

from __future__ import annotations

import re
from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.families.llava_next import LlavaNext
from pocketvlm_converters.onnx.patches import BICUBIC, require_preprocessing
from pocketvlm_converters.weights import Part, Value

_EDGES = range(384, 384 * 7, 384)
_ANYRES = "anyres_max_9"  # default of vision_aspect_ratio
_MAX_TILES = 1 << 12  # far above what models have


class LlavaOnevision(LlavaNext):
    model_types: ClassVar[frozenset[str]] = frozenset({"llava_onevision"})
    text_kind: ClassVar[str] = "qwen2"
    encoder_kind: ClassVar[str] = "siglip_vision_model"
    feature_layer: ClassVar[int] = -1
    selection: ClassVar[str] = "full"
    default_grids: ClassVar[list[list[int]]] = [[height, width] for height in _EDGES for width in _EDGES]

    def language(self) -> Part:
        self._text.require("model_type", "qwen2", "qwen2")
        return super().language()

    def pictures(self) -> dict[str, Value]:
        return {**super().pictures(), "pocketvlm.anyres_max": self._most}

    @property
    def _most(self) -> int:
        """The number of tiles whose embeddings a picture may have. Model and processor must agree on it."""
        config, processor = self.checkpoint.config, self.checkpoint.json("processor_config.json", optional=True)
        processor.require("vision_aspect_ratio", config.text("vision_aspect_ratio", _ANYRES), _ANYRES)
        processor.require("vision_feature_select_strategy", "full", "full")
        if processor.values.get("num_image_tokens") is not None:
            processor.require("num_image_tokens", self._encoder.side**2, None)
        return _tiles(config)

    @cached_property
    def _fit(self) -> str:
        """How a picture is made square. A tile already is, so the value has no effect."""
        preprocessor, edge = self.checkpoint.preprocessor, self._encoder.image
        require_preprocessing(preprocessor, BICUBIC)
        size = preprocessor.section("size")
        for key in ("height", "width"):
            size.require(key, edge, 384)
        if preprocessor.values.get("do_center_crop"):
            raise preprocessor.wrong("do_center_crop", "only false is supported")
        return "crop"


def _tiles(config: Section) -> int:
    """Return n of `anyres_max_n`."""
    match = re.fullmatch(r"anyres_max_(\d{1,4})", config.text("vision_aspect_ratio", _ANYRES))
    if not match or not 1 <= int(match[1]) <= _MAX_TILES:
        raise config.wrong("vision_aspect_ratio", f"expected anyres_max_ and a number of tiles, at most {_MAX_TILES}")
    return int(match[1])
