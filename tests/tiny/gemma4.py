"""Gemma 4: windows and none, keys that layers share, inputs of their own for each layer, clipped encoder, pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessorPil,
    Gemma4Processor,
    PreTrainedTokenizerFast,
)

from tiny import gemma3, randomize

VARIANTS: dict[str, dict[str, Any]] = {
    "gemma4": {},
    "gemma4-31b": {  # pictures look both ways in layers with a window, no layer shares keys, values are keys
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "use_bidirectional_attention": "vision",
        "vision": {"use_clipped_linears": False, "standardize": True},
    },
}
PATCH, POOL, TOKENS = 4, 3, 70
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 12,
    "max_position_embeddings": 4096,
    "layer_types": [*["sliding_attention"] * 3, "full_attention", *["sliding_attention"] * 2, "full_attention"],
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 24,
    "final_logit_softcapping": 2.0,  # bends logits of this size as 30 does those of trained models
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "patch_size": PATCH,
    "pooling_kernel_size": POOL,
    "position_embedding_size": 240,
    "use_clipped_linears": True,
}
# ggml looks GELU up in a float16 table: an input's last bit may move what comes of it by 2^-11, and layers add to that.
GELU = ("post_feedforward_layernorm.weight", "post_per_layer_input_norm.weight")
CONTROL = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"),
    *("<|image>", "<image|>", "<|image|>", "<|video|>", "<|audio>", "<audio|>", "<|audio|>"),
)
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|video|>' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<turn|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% endif %}"
)


def model(vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    words = gemma3.tokenizer(CONTROL)
    rows = words.get_vocab_size() + 7
    config = Gemma4Config(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": rows, "vocab_size_per_layer_input": rows} | text,
        audio_config=None,
        boi_token_id=words.token_to_id("<|image>"),
        eoi_token_id=words.token_to_id("<image|>"),
        image_token_id=words.token_to_id("<|image|>"),
        video_token_id=words.token_to_id("<|video|>"),
        audio_token_id=words.token_to_id("<|audio|>"),
    )
    # Of the seeds 0 to 3, that with the most varied answers.
    made = randomize(Gemma4ForConditionalGeneration(config), seed=3)
    with torch.no_grad():
        # With a tied head, a token as large as the layers' work would only repeat itself, were it not for these signs.
        embedding, last = made.get_input_embeddings().weight, made.model.language_model.norm.weight
        embedding.mul_(0.4)
        last.mul_(torch.randn(len(last)).sign())
        for token in (config.image_token_id, config.video_token_id, config.audio_token_id):
            embedding[token] *= 0.1  # never said, as transformers would look for what it stands for
        for name, weight in made.named_parameters():
            if name.endswith("q_norm.weight"):  # in place of a scale: attention that sees more than one token
                weight.mul_(0.3)
            elif name.endswith(GELU) and "language_model" in name:
                weight.mul_(0.1)
        for number, (name, values) in enumerate(made.named_buffers()):
            last = name.rpartition(".")[2]
            if last == "layer_scalar":
                values.fill_(0.6 + 0.05 * number % 0.5)
            elif last in ("std_bias", "std_scale"):
                values.normal_(float(last == "std_scale"), 0.2)
            elif last.endswith(("put_min", "put_max")):  # some values of each are beyond it
                values.fill_((-1 if last.endswith("min") else 1) * (1.0 + 0.01 * number))
    made.generation_config.eos_token_id = [words.token_to_id("<eos>"), words.token_to_id("<turn|>")]
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=gemma3.tokenizer(CONTROL),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "image_token": "<|image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    Gemma4ImageProcessorPil(patch_size=PATCH, pooling_kernel_size=POOL, max_soft_tokens=TOKENS).save_pretrained(folder)


def processor(folder: Path) -> Any:
    """Without a video processor, which would need torchvision, and without sound."""
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    return _Processor(None, Gemma4ImageProcessorPil.from_pretrained(folder), words, None, words.chat_template)


class _Processor(Gemma4Processor):
    """One that may lack parts."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return argument and super().check_argument_for_proper_class(argument_name, argument)


def hub_name(name: str) -> str:
    return name


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """Sizes of layers without a window in two keys; what is the default of its class is left out."""
    text = dict(config["text_config"])
    per_layer = next(iter(text.pop("per_layer_config").values()))
    text["global_head_dim"] = per_layer["head_dim"]
    if "num_key_value_heads" in per_layer:
        text["num_global_key_value_heads"] = per_layer["num_key_value_heads"]
    for same in ("attention_bias", "enable_moe_block"):
        text.pop(same, None)
    return config | {"text_config": text}
