"""Mistral Small 3.1, Ministral 3, Pixtral: two layers of each kind, heads wider than their share, rows that end."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import transformers.models.pixtral.image_processing_pil_pixtral as pil
from tokenizers import Tokenizer, processors
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessorPil,
    PreTrainedTokenizerFast,
)

from tiny import byte_bpe, randomize, renamed

# The processor takes one function from this module, which needs torchvision; its twin for Pillow has the same.
sys.modules.setdefault("transformers.models.pixtral.image_processing_pixtral", pil)
from transformers.models.pixtral.processing_pixtral import PixtralProcessor  # noqa: E402

VARIANTS: dict[str, dict[str, Any]] = {
    "mistral3": {},
    "ministral3": {"kind": "ministral3", "tied": True},
    "pixtral": {"merges": False, "biased": True, "vision": {"patch_size": 28}},
}
PATCH, MERGE = 14, 2
LONGEST = 400  # pixels: no multiple of what one embedding sees
CONTROL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + content + '[/SYSTEM_PROMPT]' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST]' }}"
    "{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ '[IMG]' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '[/INST]' }}"
    "{% else %}{{ (content if content is string else content[0]['text']) + eos_token }}{% endif %}"
    "{% endfor %}"
)
TEXT: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Positions are stretched and queries grow behind 24 tokens, as those of every test are.
SCALED: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
    "beta_fast": 0.5,
    "beta_slow": 0.05,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
VISION: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": LONGEST,
    "patch_size": PATCH,
    "hidden_act": "silu",
}
_CLASSES: dict[bool, tuple[Any, Any, dict[str, Any]]] = {
    True: (Mistral3Config, Mistral3ForConditionalGeneration, {"spatial_merge_size": MERGE}),
    False: (
        LlavaConfig,
        LlavaForConditionalGeneration,
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
}


@cache
def tokenizer() -> Tokenizer:
    """As on the hub: words that are tokens skip the merges, nothing is normalised, `<s>` comes first."""
    described = json.loads(byte_bpe(CONTROL, WORDS).to_str())
    described["normalizer"], described["model"]["ignore_merges"] = None, True
    made = Tokenizer.from_str(json.dumps(described))
    first = made.token_to_id("<s>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    return made


def model(
    kind: str = "mistral",
    merges: bool = True,
    tied: bool = False,
    biased: bool = False,
    vision: dict[str, Any] | None = None,
    **text: Any,
) -> Any:
    """`vision` and `text` change the configurations; `kind` is that of the decoder. One that `merges` no patches is
    Pixtral, which transformers has as LLaVA.
    """
    words = tokenizer()
    text = {"model_type": kind} | ({"rope_parameters": SCALED} if kind == "ministral3" else {}) | text
    ids = {f"{name}_token_id": words.token_to_id(token) for name, token in (("bos", "<s>"), ("eos", "</s>"))}
    config_class, model_class, others = _CLASSES[merges]
    config = config_class(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | ids | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": tied} | text,
        tie_word_embeddings=tied,
        image_token_index=words.token_to_id("[IMG]"),
        multimodal_projector_bias=biased,
        **others,
    )
    made = randomize(model_class(config))
    if merges:  # transformers takes a picture of one embedding for embeddings of one value
        made.model.multi_modal_projector.register_forward_hook(lambda _module, _inputs, rows: rows[None])
    made.generation_config.eos_token_id = words.token_to_id("</s>")
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    patch, merge = model.config.vision_config.patch_size, getattr(model.config, "spatial_merge_size", 1)
    images = PixtralImageProcessorPil(size={"longest_edge": LONGEST}, patch_size=patch)
    made = PixtralProcessor(images, words, patch_size=patch, spatial_merge_size=merge, chat_template=CHAT_TEMPLATE)
    made.save_pretrained(folder)


def processor(folder: Path) -> Any:
    return PixtralProcessor.from_pretrained(folder)


def hub_name(name: str) -> str:
    return renamed(
        name,
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    )


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    if text["model_type"] == "mistral":
        text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    vision["rope_theta"] = vision.pop("rope_parameters")["rope_theta"]
    rest = {key: value for key, value in config.items() if key != "tie_word_embeddings"}
    return rest | {"text_config": text, "vision_config": vision | {"head_dim": 16}}
