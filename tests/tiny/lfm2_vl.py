"""LFM2-VL: convolutions and attention in turns, grouped heads, a table of 5 x 5 positions, tiles of 32 pixels.

transformers' image processor wants torchvision, of which there is no build for CPUs alone. Here its own code runs with
Pillow in place of torchvision where it resizes, and numpy where it normalises.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, processors
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_backends import TorchvisionBackend

from tiny import byte_bpe, randomize

VARIANTS: dict[str, dict[str, Any]] = {
    "lfm2_vl": {},
    "lfm2_vl-2.5": {"tied": False, "projector_use_layernorm": False, "full_attn_idxs": [0, 3]},
}
PATCH, FACTOR, TILE, TILES = 4, 2, 32, 10
CELL = PATCH * FACTOR
PICTURES: dict[str, Any] = {
    "encoder_patch_size": PATCH,
    "downsample_factor": FACTOR,
    "tile_size": TILE,
    "max_tiles": TILES,
    "min_image_tokens": 6,
    "max_image_tokens": 20,
}
CONTROL = (
    *("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"),
    *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
    *(f"<|img_row_{row + 1}_col_{col + 1}|>" for row in range(TILES) for col in range(TILES)),
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 150,  # 100 after the adjustment, then up to 112
    "block_multiple_of": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "full_attn_idxs": [1, 3],
}
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": PATCH,
    "num_patches": 25,
    "vision_use_head": False,
}


class _Pillow(TorchvisionBackend):
    """In place of torchvision: uint8 [pictures, 3, height, width] in, as many out."""

    def resize(self, image: Any, size: Any, resample: Any = None, **_: Any) -> Any:
        if size.height == image.shape[-2] and size.width == image.shape[-1]:
            return image
        pictures = (Image.fromarray(one.permute(1, 2, 0).numpy()) for one in image)
        made = [np.array(one.resize((size.width, size.height), Image.Resampling(resample))) for one in pictures]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)

    def normalize(self, image: Any, mean: Any, std: Any, **_: Any) -> Any:
        return (image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def _image_processor() -> type:
    """The reference's class over Pillow; its module imports torchvision, but only names types of it."""
    empty = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")}
    empty["torchvision.transforms.v2"].functional = ModuleType("functional")  # type: ignore[attr-defined]
    sys.modules.update(empty)
    try:
        reference = import_module("transformers.models.lfm2_vl.image_processing_lfm2_vl").Lfm2VlImageProcessor
    finally:
        for name in empty:
            del sys.modules[name]
    # Between the reference and what it derives from, and under the reference's name, which files hold.
    return type(reference.__name__, (reference, _Pillow), {"__module__": __name__})


Lfm2VlImageProcessor: Any = _image_processor()
AutoImageProcessor.register(
    Lfm2VlConfig, image_processor_classes=dict.fromkeys(("pil", "torchvision"), Lfm2VlImageProcessor), exist_ok=True
)


@cache
def tokenizer() -> Tokenizer:
    made = byte_bpe(CONTROL, WORDS)
    made.normalizer = None
    made.model.ignore_merges = True
    bos = ("<|startoftext|>", made.token_to_id("<|startoftext|>"))
    made.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return made


def model(
    tied: bool = True, vision: dict[str, Any] | None = None, projector_use_layernorm: bool = True, **text: Any
) -> Any:
    """`vision` and `text` change the configurations."""
    words = tokenizer()
    config = Lfm2VlConfig(
        vision_config=VISION | (vision or {}),
        text_config=TEXT
        | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": tied}
        | {"bos_token_id": words.token_to_id("<|startoftext|>"), "eos_token_id": words.token_to_id("<|im_end|>")}
        | text,
        image_token_id=words.token_to_id("<image>"),
        projector_hidden_size=72,
        projector_use_layernorm=projector_use_layernorm,
        downsample_factor=FACTOR,
        tie_word_embeddings=tied,
    )
    # With most seeds, somewhere in the tests' answers two tokens are as likely but for libmtmd's GELU in float16.
    made = randomize(Lfm2VlForConditionalGeneration(config), seed=122)
    made.generation_config.eos_token_id = words.token_to_id("<|im_end|>")
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        bos_token="<|startoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        extra_special_tokens={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
    )
    Lfm2VlProcessor(Lfm2VlImageProcessor(**PICTURES), words, chat_template=TEMPLATE).save_pretrained(folder)


def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def hub_name(name: str) -> str:
    return name.replace("model.vision_tower.", "model.vision_tower.vision_model.")


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """With the names that the first checkpoints have, and what they have besides."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "block_ff_dim": text["intermediate_size"], "block_norm_eps": 1e-5}
    for same in ("conv_bias", "conv_L_cache", "layer_types", "tie_word_embeddings"):
        text.pop(same, None)
    rest = {key: value for key, value in config.items() if key != "projector_use_layernorm" or not value}
    rest["image_token_index"] = rest.pop("image_token_id")
    if rest.pop("tie_word_embeddings") is False:
        rest["tie_embedding"] = False
    old = {"model_type": "lfm2-vl", "vision_feature_layer": -1, "text_config": text, "vision_config": vision}
    return rest | old
