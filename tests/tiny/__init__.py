"""Tiny checkpoints of random weights with the true structure of their family, made with transformers.

One module a family, named as its converter: found by looking, as the families themselves are. A module offers

- `VARIANTS`: keyword arguments of `model` by a name for each; the first is the family as people have it
- `model(**variant)`: the model in float32, in evaluation mode, no two tensors alike
- `save(model, folder, **options)`: a checkpoint as transformers 5 saves it, with tokenizer, processor and template;
  `options` go to `save_pretrained`
- `processor(folder)`: what transformers reads the checkpoint's prompts and pictures with
- `hub_name(name)`: a tensor's name as checkpoints on the hub have it, from that of the model in memory
- `hub_config(config)`: config.json as checkpoints on the hub have it, from what transformers 5 saves
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from iota.tokenizer import corpus

SPACE = "\u2581"  # stands for a space within tokens
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tiny(Protocol):
    VARIANTS: dict[str, dict[str, Any]]
    model: Callable[..., Any]
    save: Callable[..., None]
    processor: Callable[[Path], Any]
    hub_name: Callable[[str], str]
    hub_config: Callable[[dict[str, Any]], dict[str, Any]]


def families() -> dict[str, Tiny]:
    return {found.name: import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)}


def renamed(name: str, *prefixes: tuple[str, str]) -> str:
    """A tensor's name with the first of the prefixes that it has, (here, on the hub), changed for the other."""
    for here, hub in prefixes:
        if name.startswith(here):
            return hub + name.removeprefix(here)
    return name


def randomize(model: Any, seed: int = 0, spread: float = 0.15) -> Any:
    """Every tensor different from every other, norms and biases too; norms scattered around their neutral value."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            neutral = weight.mean().item() if "norm" in name and name.endswith("weight") else 0.0
            weight.normal_(neutral, spread)
    return model.eval()


def byte_bpe(control: Iterable[str], words: str = _WORDS) -> Tokenizer:
    """In the shape of Qwen's: byte-level BPE over `words`, normalised, with `control` tokens behind the others."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(corpus(200), trainer)
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return made


def character_bpe(control: Iterable[str], more: Iterable[str] = ()) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges over characters with a fallback to bytes, as conversions from SentencePiece list them.

    Every way to part a token in two is a merge, in the order of the tokens. `control` tokens come first, then `more`.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    lines = (line.replace(" ", SPACE).replace("\n", "") for line in corpus(1000))
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learnt = sorted(trained.get_vocab(), key=lambda piece: (len(piece) == 1, trained.token_to_id(piece)))
    longer = tuple(more)
    pieces = [*control, *longer, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt]
    ids = {piece: number for number, piece in enumerate(pieces)}
    parted = ((piece[:at], piece[at:]) for piece in (*longer, *learnt) for at in range(1, len(piece)))
    return ids, [(one, other) for one, other in parted if one in ids and other in ids]
