"""iota's byte-level BPE tokenizer and the files that let transformers load it.

Control tokens and chat template are equivalent to SmolVLM's, so that one converter and one runtime family serve both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from .questions import conversation
from .scenes import COLOURS, SHAPES, WORDS, random_scene

VOCABULARY = 1024
TILES = tuple(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *TILES,
)
# What boxes and records are written with, beyond the corpus.
PIECES = (
    *(
        ' [{"',
        ' {"',
        '":',
        " [",
        "],",
        ' "',
        '"}',
        '"}]',
        '"},',
        " []",
        '",',
        "bbox",
        "label",
        "shape",
        "colour",
        "size",
    ),
    *(
        "place",
        "text",
        "word",
        "number",
        " JSON",
        "Locate",
        " Locate",
        " box",
        " boxes",
        " report",
        " coordinates",
        " with",
    ),
    *(" keys", " every", " all", *COLOURS, *SHAPES),
)
CHAT_TEMPLATE = (
    "<|im_start|>"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}"
    "{{ ': ' + message['content'] }}"
    "{% else %}"
    "{{ ':' if message['content'] and message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{{ '<end_of_utterance>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def corpus(samples: int = 20000) -> Iterable[str]:
    """Yield conversations as in training, words and newlines: everything that deserves its own token."""
    rng = Random(0)
    yield "\n\n" * 1000
    for _ in range(200):
        yield from (f"User: {word}\n\n" for word in WORDS)
    for _ in range(samples):
        scenes = tuple(random_scene(rng) for _ in range(rng.choice((1, 1, 2))))
        for turn in conversation(scenes, rng, 6):
            yield f"User: {turn.question}"
            yield f"\nAssistant: {turn.answer}"


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def extend(tokenizer: Tokenizer) -> Tokenizer:
    """Return `tokenizer` with merges that make one token of each of PIECES. Other texts keep their tokens."""
    settings = json.loads(tokenizer.to_str())
    vocabulary, merges = settings["model"]["vocab"], settings["model"]["merges"]
    for piece in PIECES:
        while len(parts := Tokenizer.from_str(json.dumps(settings)).encode(piece, add_special_tokens=False).tokens) > 1:
            merges.append(parts[:2])
            vocabulary.setdefault("".join(parts[:2]), len(vocabulary))
    return Tokenizer.from_str(json.dumps(settings))


def save_processor(tokenizer: Tokenizer, folder: Path, tile: int, longest_edge: int, tokens_per_tile: int) -> None:
    """Write the files that transformers' AutoProcessor needs in addition to the weights."""
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor, PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    images = Idefics3ImageProcessorPil(size={"longest_edge": longest_edge}, max_image_size={"longest_edge": tile})
    images.image_mean = images.image_std = [0.5, 0.5, 0.5]
    processor = Idefics3Processor(images, fast, image_seq_len=tokens_per_tile, chat_template=CHAT_TEMPLATE)
    processor.save_pretrained(folder)
