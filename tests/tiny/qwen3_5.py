"""Qwen3.5: pictures of Qwen3-VL without deepstack; six delta nets and two layers of gated attention by turns of four.

A quarter of each head is rotated, by frequencies that time, height and width take in turn. The template drops earlier
thoughts, and the marks of thoughts around every earlier answer.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor

from tiny import byte_bpe, qwen2_5_vl, qwen3_vl, randomize
from tiny.qwen2_5_vl import CONTROL, without_videos

VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3_5": {},
    # As many value heads as key heads; layers in an order that no interval describes, the last one with a state.
    "qwen3_5-untied": {
        "tied": False,
        "linear_num_value_heads": 2,
        "num_hidden_layers": 5,
        "layer_types": [f"{kind}_attention" for kind in ("full", "linear", "linear", "full", "linear")],
    },
}
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% set asked = namespace(last=-1) %}"
    "{% for message in messages %}{% if message.role == 'user' %}{% set asked.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.index0 > asked.last %}"
    "{{ '<think>\n' + (message.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
    "bos_token_id": None,
    "eos_token_id": None,
}
VISION = {key: value for key, value in qwen3_vl.VISION.items() if key != "deepstack_visual_indexes"} | {"depth": 3}


@cache
def tokenizer() -> Tokenizer:
    made = byte_bpe(CONTROL, WORDS)
    made.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in ("<think>", "</think>")])
    return made


def model(tied: bool = True, vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    words = tokenizer()
    config = Qwen3_5Config(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": tied} | text,
        tie_word_embeddings=tied,
        image_token_id=words.token_to_id("<|image_pad|>"),
        video_token_id=words.token_to_id("<|video_pad|>"),
        vision_start_token_id=words.token_to_id("<|vision_start|>"),
        vision_end_token_id=words.token_to_id("<|vision_end|>"),
    )
    made = randomize(Qwen3_5ForConditionalGeneration(config))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name.endswith("dt_bias"):
                weight -= 3.0  # otherwise a state forgets half of itself at every token
    made.generation_config.eos_token_id = words.token_to_id("<|im_end|>")
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    qwen2_5_vl.save(model, folder, images=qwen3_vl.PICTURES, words=tokenizer(), template=TEMPLATE, **options)


def processor(folder: Path) -> Any:
    return without_videos(Qwen3VLProcessor, folder)


def hub_name(name: str) -> str:
    """Published with transformers 5, which has the same names."""
    return name


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """With keys that transformers does not read, and without some that equal the defaults."""
    more = {"attn_output_gate": True, "mtp_num_hidden_layers": 1, "mamba_ssm_dtype": "float32"}
    text, vision = config["text_config"] | more, config["vision_config"] | {"model_type": "qwen3_5"}
    vision["deepstack_visual_indexes"] = []
    for default in ("linear_conv_kernel_dim", "rms_norm_eps"):
        del text[default]
    del vision["rope_parameters"]
    return config | {"text_config": text, "vision_config": vision}
