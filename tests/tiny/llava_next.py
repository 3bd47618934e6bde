"""LLaVA-NeXT: pictures in tiles, cut back to their proportions, with an embedding behind each row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)

from tiny import llava, randomize

TILE, PATCH = llava.TILE, llava.PATCH
GRIDS = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]  # height, width in tiles
VARIANTS: dict[str, dict[str, Any]] = {"llava_next": {}}
# The form of LLaVA 1.6 with Mistral's decoder.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s>' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)


def model(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **options: Any) -> Any:
    """`vision`, `text` and `options` change the configurations."""
    words = llava.llama_tokenizer()
    told = llava.TEXT | {"model_type": "mistral", "vocab_size": len(words) + 9, "sliding_window": None}
    config = LlavaNextConfig(
        vision_config=llava.VISION | {"model_type": "clip_vision_model"} | (vision or {}),
        text_config=told | {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id} | (text or {}),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(TILE // PATCH) ** 2,
        image_grid_pinpoints=[[TILE * rows, TILE * cols] for rows, cols in GRIDS],
        **options,
    )
    made = randomize(LlavaNextForConditionalGeneration(config), seed=1)
    made.generation_config.eos_token_id = words.eos_token_id
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    square = {"height": TILE, "width": TILE}
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size=square, image_grid_pinpoints=model.config.image_grid_pinpoints
    )
    LlavaNextProcessor(
        images,
        llava.llama_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def processor(folder: Path) -> Any:
    return LlavaNextProcessor.from_pretrained(folder)


def hub_name(name: str) -> str:
    return "image_newline" if name == "model.image_newline" else llava.hub_name(name)


hub_config = llava.hub_config
