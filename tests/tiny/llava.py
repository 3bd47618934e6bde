"""LLaVA: CLIP up to its last layer but one before Llama, pictures cut square; SigLIP before another decoder."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessorPil,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from tiny import byte_bpe, character_bpe, randomize, renamed

TILE, PATCH = 56, 14
CONTROL = ("<unk>", "<s>", "</s>")
VARIANTS: dict[str, dict[str, Any]] = {
    "llava": {},
    "llava-siglip": {  # patches that do not fill the tile, as in the models that have such a tower
        "tower": "siglip_vision_model",
        "decoder": "qwen2",
        "tie_word_embeddings": True,
        "vision": {"image_size": 60},
    },
}
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "rms_norm_eps": 1e-5,
}
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
}
TEMPLATE = (  # as the files of LLaVA 1.5 have it: pictures first, then text
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}"
    "{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def llama_tokenizer() -> Any:
    """In the shape of Vicuna's: a space before a text, two tokens added behind the vocabulary."""
    ids, merges = character_bpe(CONTROL)
    made = LlamaTokenizer(vocab=ids, merges=merges, add_bos_token=True, pad_token="<pad>", model_max_length=4096)
    made.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    return made


@cache
def chatml_tokenizer() -> Any:
    control = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe(control), eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096
    )


def words_of(config: Any) -> Any:
    return llama_tokenizer() if config.text_config.model_type in ("llama", "mistral") else chatml_tokenizer()


def model(
    tower: str = "clip_vision_model",
    decoder: str = "llama",
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """`vision`, `text` and `options` change the configurations."""
    words = llama_tokenizer() if decoder == "llama" else chatml_tokenizer()
    seen = VISION | {"model_type": tower} | ({"vision_use_head": False} if tower.startswith("siglip") else {})
    chosen = {} if tower.startswith("clip") else {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    tied = options.get("tie_word_embeddings", False)
    told = TEXT | {"model_type": decoder, "vocab_size": len(words) + 9, "tie_word_embeddings": tied}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = LlavaConfig(
        vision_config=seen | (vision or {}),
        text_config=told | ends | (text or {}),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(TILE // PATCH) ** 2,
        **(chosen | options),
    )
    made = randomize(LlavaForConditionalGeneration(config), seed=2)
    made.generation_config.eos_token_id = words.eos_token_id
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    config = model.config
    clip, side = config.vision_config.model_type == "clip_vision_model", config.vision_config.image_size
    square = {"height": side, "width": side}
    images = (
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
        if clip
        else SiglipImageProcessorPil(size=square)
    )
    LlavaProcessor(
        images,
        words_of(config),
        patch_size=PATCH,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=TEMPLATE if clip else CHATML,
        num_additional_image_tokens=int(clip),
    ).save_pretrained(folder)


def processor(folder: Path) -> Any:
    return LlavaProcessor.from_pretrained(folder)


def hub_name(name: str) -> str:
    return renamed(
        name,
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    )


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    """What is the default of its class is left out."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    rope = text.pop("rope_parameters")
    for section, keys in ((text, ("hidden_act", "attention_bias", "mlp_bias")), (vision, ("hidden_act",))):
        for key in keys:
            section.pop(key, None)
    vision.pop("layer_norm_eps")
    rest = {key: value for key, value in config.items() if key not in ("image_seq_length", "multimodal_projector_bias")}
    return rest | {"text_config": text | {"rope_theta": rope["rope_theta"]}, "vision_config": vision}
