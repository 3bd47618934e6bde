"""Qwen2.5-VL: ViT with 2-D rotary positions and windows, M-RoPE decoder, pictures at about their own size."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.family import Family, Names, Part, Value
from pocketvlm_converters.networks.decoder import MOST_LAYERS, Style, decoder, head_width, require_full_attention
from pocketvlm_converters.networks.rope import Rope, read_rope
from pocketvlm_converters.networks.rotary_vit import RotaryViT
from pocketvlm_converters.onnx.graph import Graph, GraphOutput
from pocketvlm_converters.onnx.patches import Normalization, read_normalization

_STYLE = Style(  # defaults are those of transformers' Qwen2_5_VLTextConfig
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
_THETA = 1000000.0
_WINDOW = 112  # pixels; libmtmd has no key for it
_MERGE = 2  # likewise: parts of its graph and of its input count on it
_VISION_EPSILON = 1e-6  # no configuration has a key for it
_IMAGE_SIZE = 560  # libmtmd wants a value, as its own converter writes it; nothing comes of it
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# transformers' Qwen2VLImageProcessor, in pixels
_LEAST, _MOST = 56 * 56, 28 * 28 * 1280
# What the runtime's preprocessing takes for granted, and transformers' default where the file is silent.
_PREPROCESSING = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,  # PIL.Image.Resampling.BICUBIC
}


class Qwen25VL(Family):
    model_types: ClassVar[frozenset[str]] = frozenset({"qwen2_5_vl"})

    def language(self) -> Part:
        text = self._text
        text.require("hidden_act", "silu", "silu")
        require_full_attention(text)
        width = head_width(text, _STYLE)
        if width * text.integer("num_attention_heads", 64) != text.integer("hidden_size", 8192):
            raise CheckpointError("hidden_size is not head_dim * num_attention_heads, as libllama wants it", text.path)
        config = self.checkpoint.config
        return decoder(
            text,
            self.names(("model.language_model.", "model.")),
            self.names(("",)),
            tied=config.flag("tie_word_embeddings", False) or text.flag("tie_word_embeddings", False),
            style=_STYLE,
            rope=self._rope(width),
        )

    def projector(self) -> Part:
        pixels, (least, most) = self._normalization(), self._limits()
        metadata: dict[str, Value] = {
            "clip.projector_type": "qwen2.5vl_merger",
            **self._encoder.metadata(),
            "clip.vision.image_size": _IMAGE_SIZE,
            "clip.vision.image_min_pixels": least,
            "clip.vision.image_max_pixels": most,
            "clip.vision.image_mean": pixels.mean,
            "clip.vision.image_std": pixels.std,
        }
        return Part("clip", metadata, tuple(self._encoder.weights(self._visual())))

    def vision_graph(self, graph: Graph) -> GraphOutput:
        value = self._encoder.graph(graph, self._visual(), self._normalization())
        return GraphOutput(value, self._encoder.width)

    @cached_property
    def _text(self) -> Section:
        """The text configuration: a section in transformers 5, on the hub the file itself."""
        nested = self.checkpoint.config.section("text_config")
        return nested if nested.values else self.checkpoint.config

    @cached_property
    def _encoder(self) -> RotaryViT:
        config = self.checkpoint.config.present("vision_config")
        for key, value in (
            ("window_size", _WINDOW),
            ("spatial_merge_size", _MERGE),
            ("temporal_patch_size", 2),
            ("in_channels", 3),
            ("in_chans", 3),
            ("hidden_act", "silu"),
        ):
            config.require(key, value, value)
        rope = config.section("rope_parameters")
        rope.require("rope_type", "axial", "axial")
        rope.require("rope_theta", 10000.0, 10000.0)
        found = RotaryViT(
            hidden=config.integer("hidden_size", 3584),
            inner=config.integer("intermediate_size", 3420),
            layers=config.integer("depth", 32),
            heads=config.integer("num_heads", 16),
            patch=config.integer("patch_size", 14, most=_WINDOW // _MERGE),
            merge=_MERGE,
            width=config.integer("out_hidden_size", 3584),
            window=_WINDOW // _MERGE // config.integer("patch_size", 14),
            full=_every(config),
            epsilon=_VISION_EPSILON,
        )
        if found.hidden % (4 * found.heads):
            raise config.wrong("num_heads", f"heads of hidden_size {found.hidden} must have a multiple of 4 values")
        if found.inner == found.hidden:
            # libmtmd takes a square ffn_down for the work of an old converter and swaps it with ffn_up.
            raise config.wrong("intermediate_size", "it equals hidden_size, which libmtmd misreads")
        if found.width != (wanted := self._text.integer("hidden_size", 8192)):
            raise config.wrong("out_hidden_size", f"the language model takes {wanted}")
        return found

    def _visual(self) -> Names:
        return self.names(("model.visual.", "visual."))

    def _rope(self, width: int) -> Rope:
        rope = read_rope(self._text, width, _THETA)
        if "rope.dimension_sections" not in rope.metadata:
            raise CheckpointError(
                "mrope_section is missing: nothing says how positions are shared out", self._text.path
            )
        return rope

    def _normalization(self) -> Normalization:
        return read_normalization(self.checkpoint.preprocessor, _CLIP_MEAN, _CLIP_STD)

    def _limits(self) -> tuple[int, int]:
        """The fewest and most pixels of a picture as the model sees it."""
        preprocessor, encoder = self.checkpoint.preprocessor, self._encoder
        sizes = {"patch_size": encoder.patch, "merge_size": encoder.merge, "temporal_patch_size": 2}
        defaults = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
        for key, value in (_PREPROCESSING | sizes).items():
            preprocessor.require(key, value, defaults.get(key, value))
        size = preprocessor.section("size")
        least = preprocessor.integer("min_pixels", size.integer("shortest_edge", _LEAST))
        most = preprocessor.integer("max_pixels", size.integer("longest_edge", _MOST))
        if least > most:
            raise CheckpointError(f"pictures must have at least {least} pixels, but at most {most}", preprocessor.path)
        return least, most


def _every(config: Section) -> int:
    """`fullatt_block_indexes` as the one number that libmtmd knows: every so many layers see the whole picture."""
    layers = config.integer("depth", 32, most=MOST_LAYERS)
    listed = {int(index) for index in config.numbers("fullatt_block_indexes", [7, 15, 23, 31])}
    full = sorted(index for index in listed if index < layers)
    for step in range(1, layers + 2):
        if full == list(range(step - 1, layers, step)):
            return step
    raise config.wrong("fullatt_block_indexes", f"libmtmd takes every n-th of the {layers} layers, counted from n - 1")
