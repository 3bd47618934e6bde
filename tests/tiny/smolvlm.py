"""SmolVLM, SmolVLM2 and Idefics3: two layers of each kind, grouped heads, pixel shuffle, tiles of 32 pixels.

Granite-Docling has other words: a tiktoken vocabulary, Granite's marks of turns, and DocTags behind all text.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from iota.tokenizer import corpus, save_processor, train_tokenizer
from tiny import randomize

TILE, PATCH, SHUFFLE, EDGES = 32, 4, 2, 3  # EDGES: tiles along the longest edge
VARIANTS: dict[str, dict[str, Any]] = {
    "smolvlm": {},
    # Patches leave an edge over, as in the models of 2.2 B parameters.
    "smolvlm-untied": {"tied": False, "vision": {"image_size": TILE + 2}},
    "idefics3": {"kind": "idefics3", "tied": False},
    "granite_docling": {"kind": "idefics3", "docling": True},
}
DOCLING = (
    *("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<end_of_utterance>"),
    *("<fake_token_around_image>", "<image>", "<global-img>", "<doctag>", "</doctag>", "<otsl>", "<loc_0>"),
    *(f"<row_{row}_col_{col}>" for row in range(1, EDGES + 1) for col in range(1, EDGES + 1)),
)
DOCLING_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|end_of_text|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
_CLASSES = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
}
TEXT: dict[str, Any] = {
    "model_type": "llama",
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
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": TILE,
    "patch_size": PATCH,
}


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@cache
def docling_tokenizer() -> Tokenizer:
    """Control tokens behind the others, and GPT-2's split."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    made.train_from_iterator(corpus(200), trainer)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in DOCLING])
    return made


def model(
    kind: str = "smolvlm", tied: bool = True, docling: bool = False, vision: dict[str, Any] | None = None, **text: Any
) -> Any:
    """`vision` and `text` change the configurations. `docling`: with the words of Granite-Docling."""
    config_class, model_class = _CLASSES[kind]
    words = docling_tokenizer() if docling else tokenizer()
    config = config_class(
        vision_config=VISION | (vision or {}),
        text_config=TEXT | {"vocab_size": words.get_vocab_size() + 9, "tie_word_embeddings": tied} | text,
        scale_factor=SHUFFLE,
        image_token_id=words.token_to_id("<image>"),
        tie_word_embeddings=tied,
    )
    made = randomize(model_class(config))
    made.generation_config.eos_token_id = words.token_to_id("<|end_of_text|>" if docling else "<end_of_utterance>")
    return made


def save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    tile, tokens = model.config.vision_config.image_size, (TILE // PATCH // SHUFFLE) ** 2
    words = docling_tokenizer()
    if model.config.image_token_id != words.token_to_id("<image>"):
        save_processor(tokenizer(), folder, tile, EDGES * tile, tokens)
        return
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<|start_of_role|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": EDGES * tile}, max_image_size={"longest_edge": tile})
    images.image_mean = images.image_std = [0.5, 0.5, 0.5]
    Idefics3Processor(images, fast, image_seq_len=tokens, chat_template=DOCLING_TEMPLATE).save_pretrained(folder)


def processor(folder: Path) -> Any:
    return AutoProcessor.from_pretrained(folder)


def hub_name(name: str) -> str:
    return name


def hub_config(config: dict[str, Any]) -> dict[str, Any]:
    text = dict(config["text_config"])
    rope = text.pop("rope_parameters")
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": None, "rope_interleaved": False, "qk_layer_norms": False}
    tile = config["vision_config"]["image_size"]
    sizes = {"size": {"longest_edge": EDGES * tile}, "max_image_size": {"longest_edge": tile}}
    return config | {"text_config": text | old, "vision_config": config["vision_config"] | sizes}
