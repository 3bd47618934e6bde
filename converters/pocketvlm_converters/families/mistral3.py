"""Pixtral, Mistral Small 3.1 and Ministral 3: Pixtral's encoder, a projector of two matrices, a Mistral decoder.

Pixtral's model_type is `llava`; the others merge patches. Pictures keep about their own size. The encoder puts the
embedding of `[IMG_BREAK]` between two rows of a picture, as libmtmd does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from pocketvlm.errors import TokenizerError, quoted
from pocketvlm_converters.checkpoint.folder import Section, Tensor
from pocketvlm_converters.families.llava import MISTRAL, MISTRAL_WINDOW
from pocketvlm_converters.family import CONNECTOR, HEAD, TOWER, Family
from pocketvlm_converters.networks.decoder import DecoderStyle, decoder, head_width
from pocketvlm_converters.networks.pixtral_vit import PixtralViT, pixtral_vit
from pocketvlm_converters.networks.rope import read_rope
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph, GraphOutput
from pocketvlm_converters.onnx.grid import Grid
from pocketvlm_converters.onnx.layers import norm
from pocketvlm_converters.onnx.patches import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    Normalization,
    read_normalization,
    require_preprocessing,
)
from pocketvlm_converters.tokenizer.pre_tokenizer import PreTokenizer
from pocketvlm_converters.weights import Part, Value, Weight

_TEXT = {  # by the model_type of text_config; the defaults are those of its configuration class
    "mistral": replace(MISTRAL, architecture="mistral3"),
    "ministral3": DecoderStyle(
        "mistral3",
        rotates_neighbours=True,
        qkv_bias=False,
        epsilon=1e-5,
        defaults={
            "intermediate_size": 14336,
            "num_hidden_layers": 34,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 131072,
            "max_position_embeddings": 262144,
        },
    ),
}
_WINDOWS: dict[str, int | None] = {"mistral": MISTRAL_WINDOW, "ministral3": None}  # defaults of sliding_window
_VISION_DEFAULTS = {  # transformers' PixtralVisionConfig
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
}
_EPSILON = 1e-5  # of the projector's norm; libmtmd uses the same for all norms
_DEFAULT_EDGE = 1024  # pixels; the image processor's default of size.longest_edge
_BREAK = "[IMG_BREAK]"
_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DECODER = ("model.language_model.", "language_model.model.", "language_model.")


class Mistral3(Family):
    model_types: ClassVar[frozenset[str]] = frozenset({"mistral3"})
    encoders: ClassVar[frozenset[tuple[str, str]]] = frozenset({("llava", "pixtral")})
    pre_tokenizers: ClassVar[tuple[PreTokenizer, ...]] = (
        PreTokenizer("tekken", (("Split", _WORDS, "Isolated"), ("ByteLevel", "bytes")), True, own_split=True),
    )

    def language(self) -> Part:
        return self._decoder

    def projector(self) -> Part:
        pixels, width = self._normalization(), self._width
        metadata: dict[str, Value] = {
            "clip.projector_type": "pixtral",
            **self._encoder.metadata(),
            "clip.vision.image_size": self._longest_edge(),
            "clip.vision.projection_dim": width,
            "clip.vision.image_mean": pixels.mean,
            "clip.vision.image_std": pixels.std,
        }
        names, hidden = self.names(CONNECTOR), self._encoder.hidden
        weights = self._encoder.weights(self.names(TOWER))
        weights.append(Weight("v.token_embd.img_break", self._break(), exact=True))
        if self._merges:
            metadata["clip.vision.spatial_merge_size"] = self._merge
            merger = names.tensor("patch_merger.merging_layer.weight", (hidden, hidden * self._merge**2))
            weights.append(Weight("mm.input_norm.weight", names.tensor("norm.weight", (hidden,)), exact=True))
            weights.append(Weight("mm.patch_merger.weight", merger))
        for number, inside in ((1, hidden), (2, width)):
            weights.append(Weight(f"mm.{number}.weight", names.tensor(f"linear_{number}.weight", (width, inside))))
            if self._biased:
                bias = names.tensor(f"linear_{number}.bias", (width,))
                weights.append(Weight(f"mm.{number}.bias", bias, exact=True))
        return Part("clip", metadata, tuple(weights))

    def vision_graph(self, graph: Graph) -> GraphOutput:
        grid, names, hidden = (
            Grid(graph, self._encoder.patch, self._merge),
            self.names(CONNECTOR),
            self._encoder.hidden,
        )
        value = self._encoder.graph(graph, self.names(TOWER), self._normalization(), grid)
        if self._merges:
            value = norm(graph, value, graph.vector(names.tensor("norm.weight", (hidden,))), epsilon=_EPSILON)
            value = graph.reshape(value, 0, -1, hidden * self._merge**2)
            value = graph.linear(value, self._merger(), sensitive=True)
        for number, inside in ((1, hidden), (2, self._width)):
            if number == 2:
                value = graph.one("Gelu", value, domain=MICROSOFT)
            bias = names.tensor(f"linear_{number}.bias", (self._width,)) if self._biased else None
            matrix = names.tensor(f"linear_{number}.weight", (self._width, inside))
            value = graph.linear(value, matrix, bias, sensitive=True)
        return GraphOutput(self._with_breaks(graph, grid, value), self._width)

    def _with_breaks(self, graph: Graph, grid: Grid, value: str) -> str:
        """Return `value` [tiles, rows * cols, width] with the embedding of a break after each row but the last."""
        width = self._width
        value = graph.reshape(value, grid.tiles, grid.rows, grid.cols, width)
        ends = graph.extents(grid.tiles, grid.rows, 1, width)
        ends = graph.one("Expand", graph.vector(self._break()), ends)
        value = graph.reshape(graph.one("Concat", value, ends, axis=2), 0, -1, width)
        return graph.one("Slice", value, graph.integers(0), graph.integers(-1), graph.integers(1))

    def _merger(self) -> Tensor:
        """Return the merging matrix. Columns go by patch, then by value; in the checkpoint by value first."""
        hidden, square = self._encoder.hidden, self._merge**2
        shape = (hidden, hidden * square)
        tensor = self.names(CONNECTOR).tensor("patch_merger.merging_layer.weight", shape)
        return tensor.view(lambda data: data.reshape(hidden, hidden, square).transpose(0, 2, 1).reshape(shape))

    def _break(self) -> Tensor:
        """Return the language model's embedding of `[IMG_BREAK]`, [width]."""
        number = self.checkpoint.token_id(_BREAK)
        table = next(weight.tensor for weight in self._decoder.weights if weight.name == "token_embd.weight")
        if number is None or number >= table.shape[0]:
            raise TokenizerError(
                f"has no token {quoted(_BREAK)}, which separates the rows of a picture", self.checkpoint.path
            )
        return replace(table[number], given_label=f"{table.label}{_BREAK}")

    @cached_property
    def _decoder(self) -> Part:
        config, text = self.checkpoint.config, self._text
        text.require("hidden_act", "silu", "silu")
        if text.values.get("sliding_window", _WINDOWS[self._kind]) is not None:
            raise text.wrong(
                "sliding_window", "only null is supported, because libllama has no window in this architecture"
            )
        tied = config.flag("tie_word_embeddings", self._merges) or text.flag("tie_word_embeddings", False)
        style = _TEXT[self._kind] if self._merges else MISTRAL
        rope = read_rope(text, head_width(text, style), yarn=self._merges)
        part = decoder(text, self.names(_DECODER), self.names(HEAD), tied, style, rope)
        return replace(part, metadata={**part.metadata, **self._temperature()})

    def _temperature(self) -> dict[str, Value]:
        """Return the key for scaling queries by the logarithm of their position, if the decoder does it."""
        if self._kind == "mistral":
            return {}
        rope = self._text.present("rope_parameters")
        rope.require("rope_type", "yarn", rope.values.get("type"))
        return {"mistral3.attention.temperature_scale": rope.number("llama_4_scaling_beta")}

    @property
    def _kind(self) -> str:
        """The decoder's model_type."""
        kind = self._text.text("model_type", "mistral" if self._merges else "llama")
        known = tuple(_TEXT) if self._merges else ("mistral",)
        if kind not in known:
            raise self._text.wrong("model_type", f"supported language models: {', '.join(known)}")
        return kind

    @property
    def _text(self) -> Section:
        return self.checkpoint.config.present("text_config")

    @property
    def _width(self) -> int:
        return self._text.integer("hidden_size", 4096)

    @cached_property
    def _encoder(self) -> PixtralViT:
        config = self.checkpoint.config
        config.require("vision_feature_layer", -1, -1 if self._merges else -2)
        config.require("projector_hidden_act", "gelu", "gelu")
        if self._merges:
            self._text.require("rms_norm_eps", _EPSILON, _TEXT[self._kind].epsilon)
        else:
            config.require("vision_feature_select_strategy", "full", "default")
        vision = config.present("vision_config")
        vision.require("model_type", "pixtral", "pixtral")
        return pixtral_vit(vision, **_VISION_DEFAULTS)

    @property
    def _merges(self) -> bool:
        """Whether neighbouring patches become one embedding: always, except in Pixtral."""
        return self.checkpoint.model_type in self.model_types

    @property
    def _merge(self) -> int:
        return self.checkpoint.config.integer("spatial_merge_size", 2, most=16) if self._merges else 1

    @property
    def _biased(self) -> bool:
        return self.checkpoint.config.flag("multimodal_projector_bias", not self._merges)

    def _normalization(self) -> Normalization:
        return read_normalization(self.checkpoint.preprocessor, CLIP_MEAN, CLIP_STD)

    def _longest_edge(self) -> int:
        """Return the longest edge of a picture, in pixels; larger ones are shrunk to it."""
        preprocessor = self.checkpoint.preprocessor
        require_preprocessing(preprocessor, BICUBIC)
        processor = self.checkpoint.json("processor_config.json", optional=True)
        processor.require("patch_size", self._encoder.patch, 16)
        processor.require("spatial_merge_size", self._merge, 1)
        return preprocessor.section("size").integer("longest_edge", _DEFAULT_EDGE)
