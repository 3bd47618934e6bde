"""GLM-OCR: heads wider than hidden size / heads, norms in those of the encoder, a layer that guesses further tokens."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    Glm46VImageProcessorPil,
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers import Glm46VProcessor as WithVideos

from tiny import byte_bpe, randomize

VARIANTS: dict[str, dict[str, Any]] = {"glm_ocr": {}}
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
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000,
        "mrope_section": [4, 6, 6],
        "partial_rotary_factor": 1.0,
    },
}
VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 48,
    "intermediate_size": 92,  # no multiple of 32
    "num_heads": 3,
    "out_hidden_size": 64,
}


@cache
def tokenizer() -> Tokenizer:
    return byte_bpe(CONTROL)


def model(tied: bool = False, vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    words = tokenizer()
    config = GlmOcrConfig(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": tied} | text,
        tie_word_embeddings=tied,
        image_token_id=words.token_to_id("<|image|>"),
        video_token_id=words.token_to_id("<|video|>"),
        image_start_token_id=words.token_to_id("<|begin_of_image|>"),
        image_end_token_id=words.token_to_id("<|end_of_image|>"),
        video_start_token_id=words.token_to_id("<|begin_of_video|>"),
        video_end_token_id=words.token_to_id("<|end_of_video|>"),
    )
    made = randomize(GlmOcrForConditionalGeneration(config))
    made.generation_config.eos_token_id = [words.token_to_id("<|endoftext|>"), words.token_to_id("<|user|>")]
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    """With one layer more, which guesses further tokens and which transformers leaves alone."""
    state, text = dict(model.state_dict()), model.config.text_config
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    last = f"model.language_model.layers.{text.num_hidden_layers - 1}."
    further = f"model.language_model.layers.{text.num_hidden_layers}."
    state |= {name.replace(last, further): tensor + 1 for name, tensor in state.items() if name.startswith(last)}
    state[f"{further}eh_proj.weight"] = torch.zeros(text.hidden_size, 2 * text.hidden_size)
    model.save_pretrained(folder, state_dict=state, **options)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    images = Glm46VImageProcessorPil(size={"shortest_edge": LEAST, "longest_edge": MOST})
    Glm46VProcessor(images, words, CHAT_TEMPLATE).save_pretrained(folder)


def processor(folder: Path) -> Any:
    return Glm46VProcessor.from_pretrained(folder)


class Glm46VProcessor(WithVideos):
    """Without them, which would need torchvision. Its arguments are what transformers takes for its parts."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def hub_name(name: str) -> str:
    return name


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """Only the text configuration says whether the head is tied."""
    return {key: value for key, value in config.items() if key != "tie_word_embeddings"}
