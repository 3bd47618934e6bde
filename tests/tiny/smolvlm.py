"""SmolVLM, SmolVLM2 and Idefics3: two layers of each kind, grouped heads, pixel shuffle, tiles of 32 pixels."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from iota.tokenizer import save_processor, train_tokenizer
from tiny import randomize

TILE, PATCH, SHUFFLE, EDGES = 32, 4, 2, 3  # EDGES: tiles along the longest edge
VARIANTS: dict[str, dict[str, Any]] = {
    "smolvlm": {},
    # Patches leave an edge over, as in the models of 2.2 B parameters.
    "smolvlm-untied": {"tied": False, "vision": {"image_size": TILE + 2}},
    "idefics3": {"kind": "idefics3", "tied": False},
}
_CLASSES = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
}
TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "rms_norm_eps": 1e-5,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
}


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer()


def model(kind: str = "smolvlm", tied: bool = True, vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    config_class, model_class = _CLASSES[kind]
    words = tokenizer()
    config = config_class(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": tied} | text,
        scale_factor=SHUFFLE,
        image_token_id=words.token_to_id("<image>"),
        tie_word_embeddings=tied,
    )
    made = randomize(model_class(config))
    made.generation_config.eos_token_id = words.token_to_id("<end_of_utterance>")
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    tile = model.config.vision_config.image_size
    save_processor(tokenizer(), folder, tile, EDGES * tile, (TILE // PATCH // SHUFFLE) ** 2)


def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def hub_name(name: str) -> str:
    return name


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters")
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": None, "rope_interleaved": False, "qk_layer_norms": False}
    tile = config["vision_config"]["image_size"]
    sizes = {"size": {"longest_edge": EDGES * tile}, "max_image_size": {"longest_edge": tile}}
    return config | {"text_config": text | old, "vision_config": config["vision_config"] | sizes}
