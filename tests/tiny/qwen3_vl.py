"""Qwen3-VL: words and pictures of Qwen2.5-VL, five encoder layers, two with deepstack projectors, three of a decoder.

Of 16 frequencies of a head, as of the family's 64, the reference gives some to time that height and width leave.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from tiny import qwen2_5_vl, randomize
from tiny.qwen2_5_vl import tokenizer, without_videos

VARIANTS: dict[str, dict[str, Any]] = {"qwen3_vl": {}}
LEAST, MOST = 64 * 64, 400 * 32 * 32  # pixels of a picture
PICTURES: dict[str, Any] = {
    "min_pixels": LEAST,
    "max_pixels": MOST,
    "patch_size": 16,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000000.0,
        "mrope_section": [8, 4, 4],
        "mrope_interleaved": True,
    },
    "bos_token_id": None,
    "eos_token_id": None,
}
VISION: dict[str, Any] = {
    "depth": 5,
    "hidden_size": 48,
    "intermediate_size": 92,  # no multiple of 32, as in some of the family
    "num_heads": 3,
    "out_hidden_size": 64,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [1, 2],
}


def model(vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    words = tokenizer()
    config = Qwen3VLConfig(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": True} | text,
        tie_word_embeddings=True,
        image_token_id=words.token_to_id("<|image_pad|>"),
        video_token_id=words.token_to_id("<|video_pad|>"),
        vision_start_token_id=words.token_to_id("<|vision_start|>"),
        vision_end_token_id=words.token_to_id("<|vision_end|>"),
    )
    made = randomize(Qwen3VLForConditionalGeneration(config))
    made.generation_config.eos_token_id = words.token_to_id("<|im_end|>")
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    qwen2_5_vl.save(model, folder, images=PICTURES, **options)


def processor(folder: Path) -> Any:
    return without_videos(Qwen3VLProcessor, folder)


def hub_name(name: str) -> str:
    """Published since transformers 4.57, which had today's names."""
    return name


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = text.pop("rope_parameters")
    old = {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    vision["model_type"] = "qwen3_vl"
    del vision["rope_parameters"]
    return config | {"text_config": text | old, "vision_config": vision}
