"""Qwen2.5-VL: two window layers and two that see the whole picture, grouped heads, M-RoPE sections, real patches."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)

from tiny import byte_bpe, randomize

VARIANTS: dict[str, dict[str, Any]] = {"qwen2_5_vl": {}, "qwen2_5_vl-untied": {"tied": False}}
LEAST, MOST = 56 * 56, 400 * 28 * 28  # pixels of a picture
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nAnswer.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0, "mrope_section": [2, 3, 3]},
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
}
VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 92,  # no multiple of 32, as in the family
    "num_heads": 4,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1, 3],
}


@cache
def tokenizer() -> Tokenizer:
    return byte_bpe(CONTROL)


def model(tied: bool = True, vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    words = tokenizer()
    config = Qwen2_5_VLConfig(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": tied} | text,
        tie_word_embeddings=tied,
        image_token_id=words.token_to_id("<|image_pad|>"),
        video_token_id=words.token_to_id("<|video_pad|>"),
        vision_start_token_id=words.token_to_id("<|vision_start|>"),
        vision_end_token_id=words.token_to_id("<|vision_end|>"),
    )
    made = randomize(Qwen2_5_VLForConditionalGeneration(config))
    made.generation_config.eos_token_id = words.token_to_id("<|im_end|>")
    return made


def save(
    model: Any,
    folder: Path,
    images: dict[str, Any] | None = None,
    words: Tokenizer | None = None,
    template: str = CHAT_TEMPLATE,
    **options: Any,
) -> None:
    """`images` are settings of the image processor."""
    model.save_pretrained(folder, **options)
    saved = PreTrainedTokenizerFast(
        tokenizer_object=words or tokenizer(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    saved.chat_template = template
    saved.save_pretrained(folder)
    images = images or {"min_pixels": LEAST, "max_pixels": MOST}
    Qwen2VLImageProcessorPil(**images).save_pretrained(folder)


def processor(folder: Path) -> Any:
    return without_videos(Qwen2_5_VLProcessor, folder)


def without_videos(base: Any, folder: Path) -> Any:
    """A processor without that of videos, which would need torchvision."""

    class Processor(base):
        """Its arguments are what transformers takes for its parts."""

        def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str) -> None:
            super().__init__(image_processor, tokenizer, chat_template=chat_template)

    words = PreTrainedTokenizerFast.from_pretrained(folder)
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return Processor(images, words, words.chat_template)


def hub_name(name: str) -> str:
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """Without a text_config: its keys lie beside the others."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = text.pop("rope_parameters")
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    for new in ("layer_types", "model_type"):
        del text[new]
    del vision["rope_parameters"], vision["model_type"]
    vision["in_chans"] = vision.pop("in_channels")
    rest = {key: value for key, value in config.items() if key != "text_config"}
    return text | old | rest | {"vision_config": vision}
