"""GLM-4.1V, GLM-4.6V-Flash and GLM-OCR: a ViT that merges by convolution, and a GLM-4 decoder with M-RoPE.

The encoder of GLM-OCR has norms in its heads and biases. That of the others has neither, but a norm of the patches and
a table of learned positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Checkpoint, Section, Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.decoder import MAX_LAYERS, DecoderStyle
from pocketvlm_converters.networks.encoder_activations import ACTIVATIONS
from pocketvlm_converters.networks.feed_forward import refuse_square
from pocketvlm_converters.networks.mrope import MERGE, MRopeFamily
from pocketvlm_converters.networks.qwen_vit import FRAMES, QwenViT, QwenViTVariant
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.layers import norm
from pocketvlm_converters.weights import Part, Value, Weight

_MAX_PATCH, _MAX_IMAGE = 64, 1 << 14  # pixels, far above what encoders have
_OCR_MLP_RATIO = 3  # the projector's MLP to its width; transformers uses in_channels for it
_OCR = "glm_ocr"
_ENCODER = QwenViTVariant(
    ACTIVATIONS["silu"],
    up="up_proj",
    down="down_proj",
    gate="gate_proj",
    rms=True,
    last="post_layernorm",
    fused=True,
    shifted=True,
)
_OCR_ENCODER = replace(_ENCODER, head_norms=True)
_POSITIONED_ENCODER = replace(
    _ENCODER,
    biased=False,
    patch_norm="post_conv_layernorm",
    positions="embeddings.position_embedding",
    cubic=True,
)
# Defaults of the configuration classes for the encoder, and for the text.
_VISION_DEFAULTS = {
    "hidden_size": 1536,
    "intermediate_size": 13696,
    "depth": 24,
    "num_heads": 12,
    "out_hidden_size": 4096,
    "image_size": 336,
}
_OCR_VISION_DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "depth": 24,
    "num_heads": 16,
    "out_hidden_size": 1536,
}
_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
}
_TEXT = DecoderStyle(
    "glm4",
    given_neighbours=True,
    fused_mlp=True,
    qkv_bias=True,
    norms=_NORMS,
    epsilon=1e-5,
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "vocab_size": 151552,
        "max_position_embeddings": 32768,
    },
)
_OCR_TEXT = replace(
    _TEXT,
    qkv_bias=False,
    defaults={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 59392,
        "max_position_embeddings": 131072,
    },
)
_PROJECTOR_EPSILON = 1e-5  # configurations have no key for it


@dataclass(frozen=True)
class _Encoder(QwenViT):
    """A `QwenViT` whose projector merges neighbouring patches by a convolution, before a norm and a gated MLP.

    `wide` is the width of that MLP.
    """

    wide: int = 0

    def metadata(self) -> dict[str, Value]:
        metadata = super().metadata()
        if self.kind.patch_norm:  # as llama.cpp's converter writes it, which takes intermediate_size
            metadata["clip.vision.feed_forward_length"] = self.wide
        return metadata

    def _projectors(self, names: Names) -> list[Weight]:
        merge, wide = self.merge, self.wide
        kernel = names.tensor("downsample.weight", (self.width, self.hidden, merge, merge))
        return [
            Weight("mm.patch_merger.weight", kernel, exact=True),
            Weight("mm.patch_merger.bias", names.tensor("downsample.bias", (self.width,)), exact=True),
            Weight("mm.model.fc.weight", names.tensor("merger.proj.weight", (self.width, self.width))),
            *(
                Weight(
                    f"mm.post_norm.{part}",
                    names.tensor(f"merger.post_projection_norm.{part}", (self.width,)),
                    exact=True,
                )
                for part in ("weight", "bias")
            ),
            Weight("mm.gate.weight", names.tensor("merger.gate_proj.weight", (wide, self.width))),
            Weight("mm.up.weight", names.tensor("merger.up_proj.weight", (wide, self.width))),
            Weight("mm.down.weight", names.tensor("merger.down_proj.weight", (self.width, wide))),
        ]

    def _merge(self, graph: Graph, names: Names, value: str) -> str:
        merge, wide = self.merge, self.wide
        kernel = names.tensor("downsample.weight", (self.width, self.hidden, merge, merge))
        # Patches are already ordered by squares, so the convolution is a matrix product.
        rows = kernel.view(lambda data: data.transpose(0, 2, 3, 1).reshape(self.width, -1))

        def linear(value: str, weight: Tensor, bias: Tensor | None = None) -> str:
            return graph.linear(value, weight, bias, sensitive=True)

        value = graph.reshape(value, 0, -1, self.merged)
        value = linear(value, rows, names.tensor("downsample.bias", (self.width,)))
        value = linear(value, names.tensor("merger.proj.weight", (self.width, self.width)))
        parts = (names.tensor(f"merger.post_projection_norm.{part}", (self.width,)) for part in ("weight", "bias"))
        value = norm(graph, value, *map(graph.vector, parts), epsilon=_PROJECTOR_EPSILON)
        value = graph.one("Gelu", value, domain=MICROSOFT)
        gate = self.kind.activation.add(
            graph, linear(value, names.tensor("merger.gate_proj.weight", (wide, self.width)))
        )
        inner = graph.one("Mul", gate, linear(value, names.tensor("merger.up_proj.weight", (wide, self.width))))
        return linear(inner, names.tensor("merger.down_proj.weight", (self.width, wide)))


class Glm4V(MRopeFamily):
    model_types: ClassVar[frozenset[str]] = frozenset({"glm4v", "glm46v", _OCR})
    projector_type = "glm4v"
    theta = 10000.0
    partial = True
    pixels = (112 * 112, 28 * 28 * 15000)
    frames = FRAMES

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.style = _OCR_TEXT if self._is_ocr else _TEXT

    def language(self) -> Part:
        self.text.require("attention_bias", self.style.qkv_bias, self.style.qkv_bias)
        layers = self.text.integer("num_hidden_layers", self.style.defaults["num_hidden_layers"], most=MAX_LAYERS)
        extra = self.text.integer("num_nextn_predict_layers", 0, least=0, most=MAX_LAYERS)
        for layer in range(layers, layers + extra):  # multi-token prediction, which the reference does not use either
            self.names(("model.language_model.", "model.")).ignore(f"layers.{layer}.")
        return super().language()

    @cached_property
    def encoder(self) -> QwenViT:
        config, ocr = self.read_vision(), self._is_ocr
        for key, value in (("hidden_act", "silu"), ("attention_bias", ocr)):
            config.require(key, value, value)
        defaults = _OCR_VISION_DEFAULTS if ocr else _VISION_DEFAULTS
        hidden, inner, layers, heads, width = (config.integer(key, defaults[key]) for key in [*defaults][:5])
        patch = config.integer("patch_size", 14, most=_MAX_PATCH)
        encoder = _Encoder(
            _OCR_ENCODER if ocr else _POSITIONED_ENCODER,
            hidden=hidden,
            # transformers makes the layers' MLP as wide as the output, and the projector's as the configuration says.
            inner=inner if ocr else width,
            layers=layers,
            heads=heads,
            patch=patch,
            merge=MERGE,
            width=width,
            epsilon=config.number("rms_norm_eps", 1e-5, positive=True),
            table=0 if ocr else self._table(config, patch),
            wide=_OCR_MLP_RATIO * width if ocr else inner,
        )
        refuse_square(config, encoder.inner, encoder.hidden, "intermediate_size" if ocr else "out_hidden_size")
        return self.check(encoder, config, "out_hidden_size")

    @property
    def _is_ocr(self) -> bool:
        return self.checkpoint.model_type == _OCR

    def _table(self, config: Section, patch: int) -> int:
        """Return the edge of the table of positions, in patches."""
        return max(1, config.integer("image_size", _VISION_DEFAULTS["image_size"], most=_MAX_IMAGE) // patch)
