"""LLaVA-OneVision: SigLIP, whose patches leave an edge over, before Qwen2; grids whose embeddings are shrunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
)
from transformers import LlavaOnevisionProcessor as WithVideos

from tiny import llava, randomize
from tiny.llava_next import hub_name

__all__ = ["hub_name"]

TILE, PATCH = 60, 14
EDGES = range(1, 5)  # tiles
GRIDS = [[TILE * rows, TILE * cols] for rows in EDGES for cols in EDGES]
ANYRES = "anyres_max_4"
VARIANTS: dict[str, dict[str, Any]] = {"llava_onevision": {}}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def model(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **options: Any) -> Any:
    """`vision`, `text` and `options` change the configurations."""
    words = llava.chatml_tokenizer()
    seen = llava.VISION | {"model_type": "siglip_vision_model", "vision_use_head": False, "image_size": TILE}
    text_config = llava.TEXT | {"model_type": "qwen2", "vocab_size": len(words) + 9, "tie_word_embeddings": True}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = LlavaOnevisionConfig(
        vision_config=seen | (vision or {}),
        text_config=text_config | ends | (text or {}),
        tie_word_embeddings=True,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=GRIDS,
        vision_aspect_ratio=ANYRES,
        **options,
    )
    made = randomize(LlavaOnevisionForConditionalGeneration(config), seed=1)
    made.generation_config.eos_token_id = words.eos_token_id
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    images = LlavaOnevisionImageProcessorPil(
        size={"height": TILE, "width": TILE},
        image_grid_pinpoints=GRIDS,
        image_mean=[0.5, 0.4, 0.6],
        image_std=[0.5] * 3,
    )
    LlavaOnevisionProcessor(
        images,
        llava.chatml_tokenizer(),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
        vision_aspect_ratio=ANYRES,
    ).save_pretrained(folder)


def processor(folder: Path) -> Any:
    return LlavaOnevisionProcessor.from_pretrained(folder)


class LlavaOnevisionProcessor(WithVideos):
    """Without videos, which would need torchvision. Its arguments are what transformers takes for its parts."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        vision_aspect_ratio: str = "anyres_max_9",
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            num_image_tokens=num_image_tokens,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            vision_aspect_ratio=vision_aspect_ratio,
        )


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """Only the text says that the head is tied; keys of older versions."""
    rest = llava.hub_config(config)
    return rest | {"tie_word_embeddings": False, "use_image_newline_parameter": True, "ignore_index": -100}
