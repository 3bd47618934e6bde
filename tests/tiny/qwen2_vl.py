"""Qwen2-VL: the decoder, words and pictures of Qwen2.5-VL behind another encoder. MinerU2.5: a narrower decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from tiny import randomize
from tiny.qwen2_5_vl import LEAST, MOST, TEXT, hub_config, hub_name, save, tokenizer, without_videos

__all__ = ["LEAST", "MOST", "hub_config", "hub_name", "save"]

# Seven heads of queries for each of keys, in a width that is not a power of two.
MINERU: dict[str, Any] = {
    "hidden_size": 112,
    "num_attention_heads": 14,
    "rope_parameters": TEXT["rope_parameters"] | {"mrope_section": [1, 1, 2]},
    "vision": {"hidden_size": 112},
}
VARIANTS: dict[str, dict[str, Any]] = {"qwen2_vl": {}, "mineru": MINERU}
VISION: dict[str, Any] = {"depth": 3, "embed_dim": 48, "mlp_ratio": 2, "num_heads": 3, "hidden_size": 64}


def model(vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    words = tokenizer()
    config = Qwen2VLConfig(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": True} | text,
        tie_word_embeddings=True,
        image_token_id=words.token_to_id("<|image_pad|>"),
        video_token_id=words.token_to_id("<|video_pad|>"),
        vision_start_token_id=words.token_to_id("<|vision_start|>"),
        vision_end_token_id=words.token_to_id("<|vision_end|>"),
    )
    made = randomize(Qwen2VLForConditionalGeneration(config))
    made.generation_config.eos_token_id = words.token_to_id("<|im_end|>")
    return made


def processor(folder: Path) -> Any:
    return without_videos(Qwen2VLProcessor, folder)
