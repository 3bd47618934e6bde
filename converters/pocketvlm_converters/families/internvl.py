"""InternVL3 and 3.5 in transformers' format: InternViT encoder, pixel shuffle, norm and MLP, Qwen decoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.family import CONNECTOR, HEAD, LANGUAGE, TOWER, Family, Names
from pocketvlm_converters.networks.decoder import DecoderStyle, decoder, head_width, require_full_attention
from pocketvlm_converters.networks.feed_forward import refuse_square
from pocketvlm_converters.networks.intern_vit import InternViT
from pocketvlm_converters.networks.rope import read_rope
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph, GraphOutput
from pocketvlm_converters.onnx.layers import norm
from pocketvlm_converters.onnx.patches import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    Normalization,
    read_normalization,
    require_preprocessing,
)
from pocketvlm_converters.weights import Part, Value, Weight

_TEXT_DEFAULTS = {  # transformers' Qwen2Config and Qwen3Config
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}
_STYLES = {  # by the text configuration's model_type
    "qwen2": DecoderStyle("qwen2", qkv_bias=True, defaults=_TEXT_DEFAULTS),
    "qwen3": DecoderStyle(
        "qwen3",
        qkv_bias=False,
        head_norms={"attn_q_norm": "q_norm", "attn_k_norm": "k_norm"},
        defaults=_TEXT_DEFAULTS | {"head_dim": 128},
    ),
}
_MAX_TILES = 1024  # bounds the work: libmtmd lists all grids
_RMS_SIZES = (3200, 45)  # hidden_size and layers; libmtmd recognises the only encoder with RMS norms by them
_HEAD_EPSILON = 1e-6  # of the norms of queries and keys; fixed in the reference
_PROJECTOR_EPSILON = 1e-5  # of the projector's norm; fixed in the reference


class InternVL(Family):
    model_types: ClassVar[frozenset[str]] = frozenset({"internvl"})
    other_formats: ClassVar[Mapping[str, str]] = {
        "internvl_chat": "OpenGVLab's own format; convert the checkpoint of the same name that ends in -hf"
    }

    def language(self) -> Part:
        text, style = self._text, self._style
        text.require("hidden_act", "silu", "silu")
        if not style.qkv_bias:  # qwen2 has biases, and transformers ignores the key
            text.require("attention_bias", False, False)
        require_full_attention(text)
        tied = self.checkpoint.config.flag("tie_word_embeddings", True)
        rope = read_rope(text, head_width(text, style))
        return decoder(text, self.names(LANGUAGE), self.names(HEAD), tied, style, rope)

    def projector(self) -> Part:
        encoder, pixels, (least, most) = self._encoder, self._normalization(), self._tiles()
        metadata: dict[str, Value] = {
            "clip.projector_type": "internvl",
            **encoder.metadata(),
            "clip.vision.projection_dim": self._width,
            "clip.vision.projector.scale_factor": self._shuffle,
            "clip.vision.preproc_min_tiles": least,
            "clip.vision.preproc_max_tiles": most,
            "clip.vision.image_mean": pixels.mean,
            "clip.vision.image_std": pixels.std,
        }
        tower, names, merged = self._tower_names(), self.names(CONNECTOR), self._merged
        weights = encoder.weights(tower)
        for kind in ("weight", "bias"):
            weights.append(Weight(f"mm.model.mlp.0.{kind}", names.tensor(f"layer_norm.{kind}", (merged,)), exact=True))
        for gguf, name, inner in (("1", "linear_1", merged), ("3", "linear_2", self._width)):
            weights.append(Weight(f"mm.model.mlp.{gguf}.weight", names.tensor(f"{name}.weight", (self._width, inner))))
            bias = names.tensor(f"{name}.bias", (self._width,))
            weights.append(Weight(f"mm.model.mlp.{gguf}.bias", bias, exact=True))
        return Part("clip", metadata, tuple(weights))

    def vision_graph(self, graph: Graph) -> GraphOutput:
        encoder, names, merged, width = self._encoder, self.names(CONNECTOR), self._merged, self._width
        tokens = (encoder.side // self._shuffle) ** 2
        value = encoder.graph(graph, self._tower_names(), self._normalization(), group=self._shuffle)
        # Patches are already ordered by squares, so the pixel shuffle is a reshape.
        value = graph.reshape(value, -1, tokens, merged)
        scales = (graph.vector(names.tensor(f"layer_norm.{kind}", (merged,))) for kind in ("weight", "bias"))
        value = norm(graph, value, *scales, epsilon=_PROJECTOR_EPSILON)
        for name, inner in (("linear_1", merged), ("linear_2", width)):
            if name == "linear_2":
                value = graph.one("Gelu", value, domain=MICROSOFT)
            weight, bias = names.tensor(f"{name}.weight", (width, inner)), names.tensor(f"{name}.bias", (width,))
            value = graph.linear(value, weight, bias, sensitive=True)
        return GraphOutput(value, width, tile=encoder.image, tokens=tokens)

    @property
    def _text(self) -> Section:
        return self.checkpoint.config.present("text_config")

    @cached_property
    def _style(self) -> DecoderStyle:
        kind = self._text.text("model_type", "qwen2")
        if kind not in _STYLES:
            raise self._text.wrong("model_type", f"supported language models: {', '.join(_STYLES)}")
        return _STYLES[kind]

    @property
    def _width(self) -> int:
        return self._text.integer("hidden_size", _TEXT_DEFAULTS["hidden_size"])

    @property
    def _merged(self) -> int:
        return self._encoder.hidden * self._shuffle**2

    @property
    def _shuffle(self) -> int:
        """The edge, in patches, of the square that becomes one token."""
        config = self.checkpoint.config
        ratio = config.number("downsample_ratio", 0.5, positive=True)
        if ratio > 1 or not (1 / ratio).is_integer():
            raise config.wrong("downsample_ratio", "it must be 1 divided by a whole number")
        return int(1 / ratio)

    @cached_property
    def _encoder(self) -> InternViT:
        config = self.checkpoint.config
        for key, value in (
            ("projector_hidden_act", "gelu"),
            ("vision_feature_layer", -1),
            ("vision_feature_select_strategy", "default"),
        ):
            config.require(key, value, value)
        config = config.present("vision_config")
        for key, value in (
            ("model_type", "internvl_vision"),
            ("hidden_act", "gelu"),
            ("num_channels", 3),
            ("use_absolute_position_embeddings", True),
            ("use_mean_pooling", True),  # otherwise a norm follows the last layer
        ):
            config.require(key, value, value)
        encoder = InternViT(
            hidden=config.integer("hidden_size", 1024),
            inner=config.integer("intermediate_size", 4096),
            layers=config.integer("num_hidden_layers", 24),
            heads=config.integer("num_attention_heads", 16),
            image=_edge(config, "image_size", 448),
            patch=_edge(config, "patch_size", 14),
            epsilon=config.number("layer_norm_eps", 1e-6, positive=True),
            rms=_is_rms(config),
            biased=config.flag("attention_bias", False),
            normed=config.flag("use_qk_norm", False),
        )
        self._check(encoder, config)
        return encoder

    def _check(self, encoder: InternViT, config: Section) -> None:
        if encoder.hidden % encoder.heads:
            raise config.wrong("num_attention_heads", f"hidden_size {encoder.hidden} is not a multiple of it")
        if encoder.image % encoder.patch or encoder.side % self._shuffle:
            raise config.wrong("image_size", "patch_size and downsample_ratio do not divide it")
        refuse_square(config, encoder.inner, encoder.hidden)
        if encoder.rms != ((encoder.hidden, encoder.layers) == _RMS_SIZES):
            raise config.wrong(
                "norm_type",
                f"libmtmd assumes rms_norm for hidden_size {_RMS_SIZES[0]} with {_RMS_SIZES[1]} layers only",
            )
        if encoder.normed and not encoder.rms:
            raise config.wrong("use_qk_norm", "libmtmd would misread it without norm_type rms_norm")
        if encoder.normed and encoder.epsilon != _HEAD_EPSILON:
            raise config.wrong("layer_norm_eps", f"only {_HEAD_EPSILON} is supported with use_qk_norm")
        if encoder.normed and encoder.heads == 1:
            raise config.wrong("num_attention_heads", "it must be at least 2 with use_qk_norm")

    def _tower_names(self) -> Names:
        names = self.names(TOWER)
        names.ignore("embeddings.mask_token")  # for training
        return names

    def _normalization(self) -> Normalization:
        return read_normalization(self.checkpoint.preprocessor, CLIP_MEAN, CLIP_STD)

    def _tiles(self) -> tuple[int, int]:
        """Return the least and most tiles that a picture is cut into."""
        preprocessor, encoder = self.checkpoint.preprocessor, self._encoder
        # `crop_to_patches` of the file does not matter: InternVLProcessor always sets it.
        require_preprocessing(preprocessor, BICUBIC)
        for key in ("height", "width"):
            preprocessor.section("size").require(key, encoder.image, 384)
        tokens = (encoder.side // self._shuffle) ** 2
        self.checkpoint.json("processor_config.json", optional=True).require("image_seq_length", tokens, 256)
        most = preprocessor.integer("max_patches", 12, most=_MAX_TILES)
        return preprocessor.integer("min_patches", 1, most=most), most


def _is_rms(config: Section) -> bool:
    kind = config.text("norm_type", "layer_norm")
    if kind not in ("layer_norm", "rms_norm"):
        raise config.wrong("norm_type", "supported: layer_norm, rms_norm")
    return kind == "rms_norm"


def _edge(config: Section, key: str, default: int) -> int:
    """Return a size that is written as one number, or as the same number for height and width."""
    value = config.values.get(key)
    if not isinstance(value, list):
        return config.integer(key, default)
    if len(value) != 2 or value[0] != value[1]:
        raise config.wrong(key, "tiles and patches must be square")
    return Section({key: value[0]}, config.path, "vision_config.").integer(key)
