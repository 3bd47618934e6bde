"""GLM-OCR: a ViT with 2-D rotary positions and head norms, merging by convolution, and a GLM-4 decoder with M-RoPE."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.family import Names
from pocketvlm_converters.networks.decoder import MAX_LAYERS, DecoderStyle
from pocketvlm_converters.networks.encoder_activations import ACTIVATIONS
from pocketvlm_converters.networks.feed_forward import refuse_square
from pocketvlm_converters.networks.mrope import MERGE, MRopeFamily
from pocketvlm_converters.networks.qwen_vit import FRAMES, QwenViT, QwenViTVariant
from pocketvlm_converters.onnx.graph import MICROSOFT, Graph
from pocketvlm_converters.onnx.layers import norm
from pocketvlm_converters.weights import Part, Weight

_MAX_PATCH = 64  # pixels; four times what encoders have
_MLP_RATIO = 3  # the projector's MLP to its width; transformers uses in_channels for it
_PROJECTOR_EPSILON = 1e-5  # configurations have no key for it


class _Encoder(QwenViT):
    """A `QwenViT` whose projector merges neighbouring patches by a convolution, before a norm and a gated MLP."""

    def _projectors(self, names: Names) -> list[Weight]:
        merge, wide = self.merge, _MLP_RATIO * self.width
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
        merge, wide = self.merge, _MLP_RATIO * self.width
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


class GlmOcr(MRopeFamily):
    model_types: ClassVar[frozenset[str]] = frozenset({"glm_ocr"})
    projector_type = "glm4v"
    style = DecoderStyle(  # defaults are those of transformers' GlmOcrTextConfig
        "glm4",
        given_neighbours=True,
        fused_mlp=True,
        qkv_bias=False,
        norms={
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_self_attn_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
        epsilon=1e-5,
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
    theta = 10000.0
    pixels = (112 * 112, 28 * 28 * 15000)
    frames = FRAMES

    def language(self) -> Part:
        self.text.require("attention_bias", False, False)
        layers = self.text.integer("num_hidden_layers", self.style.defaults["num_hidden_layers"], most=MAX_LAYERS)
        extra = self.text.integer("num_nextn_predict_layers", 0, least=0, most=MAX_LAYERS)
        for layer in range(layers, layers + extra):  # multi-token prediction, which the reference does not use either
            self.names(("model.language_model.", "model.")).ignore(f"layers.{layer}.")
        return super().language()

    @cached_property
    def encoder(self) -> QwenViT:
        config = self.read_vision()
        for key, value in (("hidden_act", "silu"), ("attention_bias", True)):
            config.require(key, value, value)
        encoder = _Encoder(
            QwenViTVariant(
                ACTIVATIONS["silu"],
                up="up_proj",
                down="down_proj",
                gate="gate_proj",
                rms=True,
                last="post_layernorm",
                fused=True,
                head_norms=True,
                shifted=True,
            ),
            hidden=config.integer("hidden_size", 1024),
            inner=config.integer("intermediate_size", 4096),
            layers=config.integer("depth", 24),
            heads=config.integer("num_heads", 16),
            patch=config.integer("patch_size", 14, most=_MAX_PATCH),
            merge=MERGE,
            width=config.integer("out_hidden_size", 1536),
            epsilon=config.number("rms_norm_eps", 1e-5, positive=True),
        )
        refuse_square(config, encoder.inner, encoder.hidden)
        return self.check(encoder, config, "out_hidden_size")
