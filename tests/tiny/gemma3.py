"""Gemma 3: eight layers, the sixth without a window; pictures wider than it, grouped heads, average pooling."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    PreTrainedTokenizerFast,
)

from tiny import SPACE, character_bpe, randomize, renamed

TILE, PATCH, POOLED = 112, 14, 2
VARIANTS: dict[str, dict[str, Any]] = {
    "gemma3": {},
    "gemma3-odd": {  # what no checkpoint of Google's has, and libllama does have
        "tied": False,
        "pooled": 4,
        "sliding_window": 40,
        "layer_types": ["full_attention", *["sliding_attention"] * 3] * 2,
        "rope_parameters": None,
    },
}
TEXT: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 12,
    "max_position_embeddings": 2048,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}
VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
    "vision_use_head": False,
}
CONTROL = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
)
NEWLINES = tuple("\n" * count for count in range(1, 9))
TEMPLATE = (
    "{{ bos_token }}"
    "{% set ns = namespace(before='', rest=messages) %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] %}"
    "{% set ns.before = (first if first is string else first[0]['text']) + '\n\n' %}"
    "{% set ns.rest = messages[1:] %}"
    "{% endif %}"
    "{% for message in ns.rest %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ ns.before if loop.first else '' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@cache
def tokenizer(control: tuple[str, ...] = CONTROL) -> Tokenizer:
    """In the shape of Gemma's: BPE over characters with a fallback to bytes, runs of newlines as added tokens."""
    ids, merges = character_bpe(control, NEWLINES)
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", SPACE)
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    made.add_tokens([AddedToken(token, normalized=False) for token in NEWLINES])
    return made


def model(tied: bool = True, pooled: int = POOLED, vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """`vision` and `text` change the configurations."""
    words, seen = tokenizer(), VISION | (vision or {})
    config = Gemma3Config(
        vision_config=seen,
        text_config=TEXT | {"vocab_size": words.get_vocab_size() + 7, "tie_word_embeddings": tied} | text,
        mm_tokens_per_image=(seen["image_size"] // PATCH // pooled) ** 2,
        boi_token_index=words.token_to_id("<start_of_image>"),
        eoi_token_index=words.token_to_id("<end_of_image>"),
        image_token_index=words.token_to_id("<image_soft_token>"),
        tie_word_embeddings=tied,
    )
    made = randomize(Gemma3ForConditionalGeneration(config))
    with torch.no_grad():  # with a tied head, a token as large as the layers' work would only repeat itself
        made.get_input_embeddings().weight.mul_(0.2)
    made.generation_config.eos_token_id = [words.token_to_id("<eos>"), words.token_to_id("<end_of_turn>")]
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        clean_up_tokenization_spaces=False,
    )
    side = model.config.vision_config.image_size
    images = Gemma3ImageProcessorPil(size={"height": side, "width": side})
    tokens = model.config.mm_tokens_per_image
    Gemma3Processor(images, fast, chat_template=TEMPLATE, image_seq_length=tokens).save_pretrained(folder)


def processor(folder: Path) -> Any:
    return Gemma3Processor.from_pretrained(folder)


def hub_name(name: str) -> str:
    return renamed(
        name,
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    )


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """What is the default of its class is left out; layers with windows are told by a pattern if at all."""
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters")
    full, around = rope["full_attention"], rope["sliding_attention"]
    text |= {"rope_theta": full["rope_theta"], "rope_local_base_freq": around["rope_theta"], "rope_scaling": None}
    if "factor" in full:
        text["rope_scaling"] = {"rope_type": full["rope_type"], "factor": full["factor"]}
    pattern = text.pop("_sliding_window_pattern")
    if text["layer_types"] == [
        "sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(text["num_hidden_layers"])
    ]:
        del text["layer_types"]
    for same in ("attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        del text[same]
    rest = {key: value for key, value in config.items() if key != "tie_word_embeddings" or not value}
    return rest | {"text_config": text}
