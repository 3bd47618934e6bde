"""GLM-4.1V and GLM-4.6V-Flash: partly rotated heads with biases. GLM-OCR: wide heads, a layer that guesses more."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessorPil,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VImageProcessorPil,
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers import Glm4vProcessor as Glm4vWithVideos
from transformers import Glm46VProcessor as Glm46VWithVideos

from tiny import byte_bpe, randomize

VARIANTS: dict[str, dict[str, Any]] = {"glm4v": {}, "glm46v": {"kind": "glm46v"}, "glm_ocr": {"kind": "glm_ocr"}}
LEAST, MOST = 112 * 112, 2 * 300 * 28 * 28  # pixels of both frames of a picture
CONTROL = (
    *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>", "<|video|>"),
)
CHAT_TEMPLATE = (
    "[gMASK]<sop>"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000,
        "mrope_section": [1, 1, 2],
        "partial_rotary_factor": 0.5,
    },
}
OCR_TEXT: dict[str, Any] = TEXT | {
    "num_nextn_predict_layers": 1,
    "head_dim": 32,
    "rope_parameters": TEXT["rope_parameters"] | {"mrope_section": [4, 6, 6], "partial_rotary_factor": 1.0},
}
VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 48,
    "intermediate_size": 92,  # no multiple of 32
    "num_heads": 3,
    "out_hidden_size": 64,
    "image_size": 84,  # a table of 6 x 6, smaller and larger than pictures
}
_KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "glm4v": (Glm4vConfig, Glm4vForConditionalGeneration, TEXT),
    "glm46v": (Glm46VConfig, Glm46VForConditionalGeneration, TEXT),
    "glm_ocr": (GlmOcrConfig, GlmOcrForConditionalGeneration, OCR_TEXT),
}


@cache
def tokenizer() -> Tokenizer:
    return byte_bpe(CONTROL)


def model(kind: str = "glm4v", tied: bool = False, vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    words = tokenizer()
    config_class, model_class, defaults = _KINDS[kind]
    config = config_class(
        vision_config=VISION | (vision or {}),
        text_config=defaults | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": tied} | text,
        tie_word_embeddings=tied,
        image_token_id=words.token_to_id("<|image|>"),
        video_token_id=words.token_to_id("<|video|>"),
        image_start_token_id=words.token_to_id("<|begin_of_image|>"),
        image_end_token_id=words.token_to_id("<|end_of_image|>"),
        video_start_token_id=words.token_to_id("<|begin_of_video|>"),
        video_end_token_id=words.token_to_id("<|end_of_video|>"),
    )
    made = randomize(model_class(config))
    made.generation_config.eos_token_id = [words.token_to_id("<|endoftext|>"), words.token_to_id("<|user|>")]
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, state_dict=_with_further_layer(model), **options)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    first = model.config.model_type == "glm4v"
    images = (Glm4vImageProcessorPil if first else Glm46VImageProcessorPil)(
        size={"shortest_edge": LEAST, "longest_edge": MOST}
    )
    (Glm4vProcessor if first else Glm46VProcessor)(images, words, CHAT_TEMPLATE).save_pretrained(folder)


def _with_further_layer(model: Any) -> dict[str, Any]:
    """The tensors of a model; GLM-OCR's with one layer more, which guesses further tokens, and transformers ignores."""
    state, text = dict(model.state_dict()), model.config.text_config
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    if getattr(text, "num_nextn_predict_layers", 0):
        last = f"model.language_model.layers.{text.num_hidden_layers - 1}."
        further = f"model.language_model.layers.{text.num_hidden_layers}."
        state |= {name.replace(last, further): tensor + 1 for name, tensor in state.items() if name.startswith(last)}
        state[f"{further}eh_proj.weight"] = torch.zeros(text.hidden_size, 2 * text.hidden_size)
    return state


def processor(folder: Path) -> Any:
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    return (Glm4vProcessor if kind == "glm4v" else Glm46VProcessor).from_pretrained(folder)


class Glm4vProcessor(Glm4vWithVideos):
    """Without videos, which would need torchvision. Its arguments are what transformers takes for its parts."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


class Glm46VProcessor(Glm46VWithVideos):
    """The same for the later models."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def hub_name(name: str) -> str:
    return name


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """Only the text configuration says whether the head is tied."""
    return {key: value for key, value in config.items() if key != "tie_word_embeddings"}
