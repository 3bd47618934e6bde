"""PaddleOCR-VL: three encoder layers with a small table of positions, wide heads, words as from SentencePiece."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    LlamaTokenizer,
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    PaddleOCRVLImageProcessorPil,
    PaddleOCRVLProcessor,
)

from tiny import character_bpe, randomize

VARIANTS: dict[str, dict[str, Any]] = {"paddleocr_vl": {}}
LEAST, MOST = 56 * 56, 300 * 28 * 28  # pixels of a picture
CONTROL = ("<unk>", "<s>", "</s>")
ADDED = ("<|begin_of_sentence|>", "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>")
CHAT_TEMPLATE = (
    "{{ '<|begin_of_sentence|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
    "{{ '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant:\n' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '</s>' }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0, "mrope_section": [4, 6, 6]},
}
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 92,  # no multiple of 32
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 84,  # a table of 6 x 6, smaller and larger than pictures
}


@cache
def tokenizer() -> Any:
    ids, merges = character_bpe(CONTROL)
    made = LlamaTokenizer(
        vocab=ids,
        merges=merges,
        add_bos_token=False,
        add_prefix_space=False,
        pad_token="<unk>",
        model_max_length=4096,
        extra_special_tokens={"image_token": "<|IMAGE_PLACEHOLDER|>"},
    )
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED], special_tokens=True)
    return made


def model(tied: bool = True, vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    words = tokenizer()
    config = PaddleOCRVLConfig(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": len(words) + 9, "tie_word_embeddings": tied} | text,
        tie_word_embeddings=tied,
        image_token_id=words.convert_tokens_to_ids("<|IMAGE_PLACEHOLDER|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|IMAGE_START|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|IMAGE_END|>"),
    )
    made = randomize(PaddleOCRVLForConditionalGeneration(config))
    made.generation_config.eos_token_id = words.eos_token_id
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, state_dict=_with_unused(model), **options)
    images = PaddleOCRVLImageProcessorPil(size={"shortest_edge": LEAST, "longest_edge": MOST}, image_mean=[0.5] * 3)
    PaddleOCRVLProcessor(images, tokenizer(), chat_template=CHAT_TEMPLATE).save_pretrained(folder)


def _with_unused(model: Any) -> dict[str, Any]:
    """The tensors of a model, and those on the hub that transformers ignores."""
    state, hidden = dict(model.state_dict()), model.config.vision_config.hidden_size
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    state["model.visual.vision_model.embeddings.packing_position_embedding.weight"] = torch.ones(40, hidden)
    return state | {"model.visual.vision_model.head.probe": torch.ones(1, 1, hidden)}


def processor(folder: Path) -> Any:
    return PaddleOCRVLProcessor.from_pretrained(folder)


def hub_name(name: str) -> str:
    for here, hub in (("language_model.", ""), ("visual.", "visual."), ("projector.", "mlp_AR.")):
        if name.startswith(f"model.{here}"):
            inside = name.removeprefix(f"model.{here}")
            return f"model.{inside}" if here == "language_model." else hub + inside
    return name


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """Without a text_config: its keys lie beside the others. Both parts have one model_type."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = text.pop("rope_parameters")
    scaling = {"mrope_section": rope["mrope_section"], "rope_type": "default", "type": "default"}
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "rope_is_neox_style": True, "use_3d_rope": True}
    del text["model_type"], vision["rope_parameters"]
    vision |= {"model_type": "paddleocr_vl", "temporal_patch_size": 2, "tokens_per_second": 2}
    rest = {key: value for key, value in config.items() if key != "text_config"}
    return text | old | rest | {"vision_config": vision}
