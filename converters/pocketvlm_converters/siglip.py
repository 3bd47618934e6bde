"""A SigLIP-style vision transformer as GGUF. Shared by every family that has one."""

from __future__ import annotations

from dataclasses import dataclass

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint import Section
from pocketvlm_converters.family import Names, Value, Weight

# libmtmd's keys for an activation. Without a key it takes the sigmoid approximation ("quick").
_ACTIVATIONS: dict[str, dict[str, Value]] = {
    "gelu_pytorch_tanh": {"clip.use_gelu": True},
    "gelu_new": {"clip.use_gelu": True},
    "silu": {"clip.use_silu": True},
    "quick_gelu": {},
}


@dataclass(frozen=True)
class SigLIP:
    """Sizes of the encoder. `side` is the number of patches along one edge of a tile."""

    hidden: int
    inner: int
    layers: int
    heads: int
    image: int
    patch: int
    epsilon: float
    activation: str

    @property
    def side(self) -> int:
        return self.image // self.patch

    def metadata(self) -> dict[str, Value]:
        return {
            "clip.has_vision_encoder": True,
            "clip.vision.image_size": self.image,
            "clip.vision.patch_size": self.patch,
            "clip.vision.embedding_length": self.hidden,
            "clip.vision.feed_forward_length": self.inner,
            "clip.vision.block_count": self.layers,
            "clip.vision.attention.head_count": self.heads,
            "clip.vision.attention.layer_norm_epsilon": self.epsilon,
            **_ACTIVATIONS[self.activation],
        }

    def weights(self, names: Names) -> list[Weight]:
        """Patch convolution, position table, norms and biases stay float32: quantized, they spoil what follows."""
        hidden, inner, found = self.hidden, self.inner, []

        def exact(gguf: str, name: str, shape: tuple[int, ...]) -> None:
            found.append(Weight(gguf, names.tensor(name, shape), exact=True))

        def linear(gguf: str, name: str, shape: tuple[int, int]) -> None:
            found.append(Weight(f"{gguf}.weight", names.tensor(f"{name}.weight", shape)))
            exact(f"{gguf}.bias", f"{name}.bias", shape[:1])

        exact("v.patch_embd.weight", "embeddings.patch_embedding.weight", (hidden, 3, self.patch, self.patch))
        exact("v.patch_embd.bias", "embeddings.patch_embedding.bias", (hidden,))
        exact("v.position_embd.weight", "embeddings.position_embedding.weight", (self.side**2, hidden))
        for layer in range(self.layers):
            here, there = f"encoder.layers.{layer}.", f"v.blk.{layer}."
            for gguf, name in (("ln1", "layer_norm1"), ("ln2", "layer_norm2")):
                exact(f"{there}{gguf}.weight", f"{here}{name}.weight", (hidden,))
                exact(f"{there}{gguf}.bias", f"{here}{name}.bias", (hidden,))
            for gguf, name in (
                ("attn_q", "q_proj"),
                ("attn_k", "k_proj"),
                ("attn_v", "v_proj"),
                ("attn_out", "out_proj"),
            ):
                linear(f"{there}{gguf}", f"{here}self_attn.{name}", (hidden, hidden))
            linear(f"{there}ffn_up", f"{here}mlp.fc1", (inner, hidden))
            linear(f"{there}ffn_down", f"{here}mlp.fc2", (hidden, inner))
        exact("v.post_ln.weight", "post_layernorm.weight", (hidden,))
        exact("v.post_ln.bias", "post_layernorm.bias", (hidden,))
        return found


def siglip(config: Section, **defaults: int) -> SigLIP:
    """Read `config`, the vision configuration; `defaults` are what the family's configuration class fills in."""
    config.require("num_channels", 3, 3)
    activation = config.text("hidden_act", "gelu_pytorch_tanh")
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise CheckpointError(f"vision_config.hidden_act {activation!r} is not in libmtmd; {known} are", config.path)
    found = SigLIP(
        hidden=config.integer("hidden_size", defaults["hidden_size"]),
        inner=config.integer("intermediate_size", defaults["intermediate_size"]),
        layers=config.integer("num_hidden_layers", defaults["num_hidden_layers"]),
        heads=config.integer("num_attention_heads", defaults["num_attention_heads"]),
        image=config.integer("image_size", defaults["image_size"]),
        patch=config.integer("patch_size", defaults["patch_size"]),
        epsilon=config.number("layer_norm_eps", 1e-6),
        activation=activation,
    )
    if found.inner == found.hidden:
        # libmtmd takes a square ffn_down for the work of an old converter and swaps it with ffn_up.
        raise CheckpointError(
            "vision_config: intermediate_size equals hidden_size, which libmtmd misreads", config.path
        )
    return found
