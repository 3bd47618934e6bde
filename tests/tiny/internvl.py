"""InternVL3: class token, scaled residuals, pixel shuffle, tiles in a grid before the whole picture.

The second variant is InternVL3.5, with Qwen3's decoder; queries, keys and values of its encoder have no biases here.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers import InternVLProcessor as WithVideos

from tiny import byte_bpe, randomize, renamed

TILE, PATCH, SHUFFLE = 32, 4, 2
VARIANTS: dict[str, dict[str, Any]] = {
    "internvl3": {},
    "internvl3_5": {
        "vision": {"attention_bias": False},
        "spare": 9,
        "tied": True,
        "model_type": "qwen3",
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
    },
}
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 20000.0},
    "rms_norm_eps": 1e-5,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": [TILE, TILE],
    "patch_size": [PATCH, PATCH],
    "attention_bias": True,
}


@cache
def tokenizer() -> Tokenizer:
    return byte_bpe(CONTROL)


def model(tied: bool = False, spare: int = -1, vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations; `spare` rows of the embedding have no token.

    Or one token, <video>, has no row, as in InternVL3.
    """
    words = tokenizer()
    config = InternVLConfig(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": words.get_vocab_size() + spare, "tie_word_embeddings": tied} | text,
        image_token_id=words.token_to_id("<IMG_CONTEXT>"),
        image_seq_length=(TILE // PATCH // SHUFFLE) ** 2,
        downsample_ratio=1 / SHUFFLE,
        tie_word_embeddings=tied,
    )
    made = randomize(InternVLForConditionalGeneration(config))
    made.generation_config.eos_token_id = words.token_to_id("<|im_end|>")
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    """As on the hub, the image processor's file says that nothing is cropped, which the processor overrules."""
    model.save_pretrained(folder, **options)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        clean_up_tokenization_spaces=False,
    )
    images = GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE},
        crop_to_patches=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    InternVLProcessor(images, words, CHAT_TEMPLATE, model.config.image_seq_length).save_pretrained(folder)


def processor(folder: Path) -> Any:
    return InternVLProcessor.from_pretrained(folder)


class InternVLProcessor(WithVideos):
    """Without them, which would need torchvision. Its arguments are what transformers takes for its parts."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str, image_seq_length: int) -> None:
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template)


def hub_name(name: str) -> str:
    return renamed(
        name,
        ("model.language_model.", "language_model.model."),
        ("model.", ""),
        ("lm_head.", "language_model.lm_head."),
    )


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """Of both, one says whether the head is tied: the text configuration."""
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters")
    del text["layer_types"]
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    if rope["rope_type"] != "default":
        old["rope_scaling"] = {"type": rope["rope_type"], "rope_type": rope["rope_type"], "factor": rope["factor"]}
    rest = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
    return rest | {"text_config": text | old}
