"""Families with a `QwenViT` and a decoder with M-RoPE (arXiv 2409.12191). Pictures keep about their own size."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Protocol

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.family import Family, Names
from pocketvlm_converters.networks.decoder import DecoderStyle, decoder, head_width, require_full_attention
from pocketvlm_converters.networks.qwen_vit import FRAMES, QwenViT
from pocketvlm_converters.networks.rope import Rope, read_rope, rotary_width, section_of
from pocketvlm_converters.onnx.graph import Graph, GraphOutput
from pocketvlm_converters.onnx.patches import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    Normalization,
    read_normalization,
    require_preprocessing,
)
from pocketvlm_converters.weights import Part, Value, Weight

MERGE = 2  # patches along an edge; libmtmd has a key for it, but parts of its graph and of its input assume 2
EPSILON = 1e-6  # of the encoder's norms; configurations have no key for it
_IMAGE_SIZE = 560  # llama.cpp's converter writes it if there is no position table; it has no effect
# Values that libmtmd has fixed for these encoders; transformers has the same defaults.
_FIXED = {"spatial_merge_size": MERGE, "temporal_patch_size": FRAMES, "in_channels": 3, "in_chans": 3}


class Encoder(Protocol):
    """An encoder whose `merge` x `merge` patches become one embedding of `width` values.

    `row` is the width with what else a row of the output has. `table` is the edge of a table of positions, or 0.
    """

    @property
    def patch(self) -> int: ...
    @property
    def merge(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def row(self) -> int: ...
    @property
    def table(self) -> int: ...
    def metadata(self) -> dict[str, Value]: ...
    def weights(self, names: Names) -> list[Weight]: ...
    def graph(self, graph: Graph, names: Names, pixels: Normalization) -> str: ...


class MRopeFamily(Family):
    """The converter of such a family.

    - `style`: the decoder's, with the defaults of its configuration class.
    - `theta`: the default base of the rotary frequencies.
    - `partial`: whether the configuration may say that only a part of each head is rotated.
    - `interleaved`: whether the axes of positions take frequencies in turn, or in consecutive sections.
    - `pixels`: the least and most pixels of a picture, as transformers' image processor has them by default. It counts
      the pixels of `frames` frames together.
    - `tied`: the default of `tie_word_embeddings`.
    - `temporal`: frames of a video in one patch.
    - `video_pixels`: those of transformers' video processor; None for a family without videos.
    """

    projector_type: ClassVar[str]
    style: DecoderStyle
    theta: ClassVar[float]
    partial: ClassVar[bool] = False
    interleaved: ClassVar[bool] = False
    pixels: ClassVar[tuple[int, int]] = (56 * 56, 28 * 28 * 1280)
    frames: ClassVar[int] = 1
    tied: ClassVar[bool] = False
    temporal: ClassVar[int] = FRAMES
    video_pixels: ClassVar[tuple[int, int] | None] = None

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """The encoder's sizes, from `read_vision()`."""

    def language(self) -> Part:
        text = self.text
        text.require("hidden_act", "silu", "silu")
        require_full_attention(text)
        config = self.checkpoint.config
        return decoder(
            text,
            self.names(("model.language_model.", "model.")),
            self.names(("",)),
            tied=config.flag("tie_word_embeddings", self.tied) or text.flag("tie_word_embeddings", self.tied),
            style=self.style,
            rope=self._rope(),
        )

    def projector(self) -> Part:
        pixels, (least, most) = self._normalization(), self._limits()
        metadata: dict[str, Value] = {
            "clip.projector_type": self.projector_type,
            **self.encoder.metadata(),
            "clip.vision.image_size": self.encoder.table * self.encoder.patch or _IMAGE_SIZE,
            "clip.vision.image_min_pixels": least,
            "clip.vision.image_max_pixels": most,
            "clip.vision.image_mean": pixels.mean,
            "clip.vision.image_std": pixels.std,
            **self._video(),
        }
        return Part("clip", metadata, tuple(self.encoder.weights(self._visual())))

    def vision_graph(self, graph: Graph) -> GraphOutput:
        value = self.encoder.graph(graph, self._visual(), self._normalization())
        return GraphOutput(value, self.encoder.row, frames=self.temporal)

    @cached_property
    def text(self) -> Section:
        """The text configuration: a section in transformers 5, in some files on the hub the top level itself."""
        nested = self.checkpoint.config.section("text_config")
        return nested if nested.values else self.checkpoint.config

    def read_vision(self) -> Section:
        """Return `vision_config`. Raises CheckpointError if it differs from what libmtmd has fixed."""
        config = self.checkpoint.config.present("vision_config")
        for key, value in _FIXED.items():
            config.require(key, value, value)
        rope = config.section("rope_parameters")
        rope.require("rope_type", "axial", "axial")
        rope.require("rope_theta", 10000.0, 10000.0)
        return config

    def check(self, encoder: QwenViT, config: Section, width_key: str) -> QwenViT:
        """Return `encoder`, which was read from `config`. Raises CheckpointError, naming `width_key` for its width."""
        if encoder.hidden % (4 * encoder.heads):
            raise config.wrong("num_heads", f"hidden_size {encoder.hidden} must be a multiple of 4 times it")
        if encoder.width != (wanted := self.text.integer("hidden_size", self.style.defaults["hidden_size"])):
            raise config.wrong(width_key, f"the language model has hidden_size {wanted}")
        return encoder

    def _visual(self) -> Names:
        return self.names(("model.visual.", "visual."))

    def _rope(self) -> Rope:
        width = head_width(self.text, self.style)
        if self.partial:
            width = rotary_width(self.text, width, 1.0)
        rope = read_rope(self.text, width, self.theta, interleaved=self.interleaved, partial=self.partial)
        if "rope.dimension_sections" not in rope.metadata:
            raise section_of(self.text).wrong(
                "mrope_section", "it must list how many frequencies time, height and width have"
            )
        return replace(rope, width=width)

    def _normalization(self) -> Normalization:
        return read_normalization(self.checkpoint.preprocessor, CLIP_MEAN, CLIP_STD)

    def _video(self) -> dict[str, Value]:
        """Return what the runtime needs to know of videos."""
        if self.video_pixels is None:
            return {}
        settings = self.checkpoint.video_processor
        size = settings.section("size")
        least = settings.integer("min_pixels", size.integer("shortest_edge", self.video_pixels[0]))
        most = settings.integer("max_pixels", size.integer("longest_edge", self.video_pixels[1]))
        if least > most:
            raise CheckpointError(f"the minimum of {least} pixels is above the maximum of {most}", settings.path)
        return {"pocketvlm.video_min_pixels": least, "pocketvlm.video_max_pixels": most}

    def _limits(self) -> tuple[int, int]:
        """Return the least and most pixels of a picture as the encoder gets it."""
        preprocessor, encoder = self.checkpoint.preprocessor, self.encoder
        sizes = {"patch_size": encoder.patch, "merge_size": encoder.merge, "temporal_patch_size": self.temporal}
        defaults = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": self.temporal}
        require_preprocessing(preprocessor, BICUBIC)
        for key, value in sizes.items():
            preprocessor.require(key, value, defaults[key])
        size = preprocessor.section("size")
        least = preprocessor.integer("min_pixels", size.integer("shortest_edge", self.pixels[0]))
        most = preprocessor.integer("max_pixels", size.integer("longest_edge", self.pixels[1]))
        if least > most:
            raise CheckpointError(f"the minimum of {least} pixels is above the maximum of {most}", preprocessor.path)
        if least % self.frames or most % self.frames:
            raise size.wrong("shortest_edge", f"it and longest_edge must be multiples of {self.frames}")
        return least // self.frames, most // self.frames
