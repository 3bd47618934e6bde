"""Parts of checkpoints with random weights: bfloat16 in safetensors files, a byte-level vocabulary."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "F8_E4M3": 1}  # bytes
NEWLINE = "\u010a"  # as ByteLevel spells it

Shape = tuple[int, ...]


class Pool:
    """Random values; every tensor is a piece of them."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._values = bfloat16(self._rng.standard_normal(1 << 22, np.float32) * np.float32(0.02))

    def tensor(self, name: str, shape: Shape) -> Iterator[np.ndarray]:
        """Block by block, each from a place of its own; weights of norms are about 1."""
        left = math.prod(shape)
        if ("norm" in name or "ln_q" in name) and len(shape) == 1 and not name.endswith("bias"):
            yield bfloat16(1 + self._rng.standard_normal(left, np.float32) * np.float32(0.02))
            return
        while left:
            at = int(self._rng.integers(len(self._values) // 2))
            block = self._values[at : at + left]
            left -= len(block)
            yield block


def bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(
    path: Path,
    shapes: Mapping[str, Shape],
    values: Callable[[str, Shape], Iterable[np.ndarray]],
    types: Mapping[str, str] | None = None,
) -> None:
    """Tensors of bfloat16 or of other `types`, one after the other; `values` gives the blocks of one."""
    header, end = {}, 0
    for name, shape in shapes.items():
        kind = (types or {}).get(name, "BF16")
        begin, end = end, end + SIZES[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for block in values(name, shape):
                file.write(block.data)


def write_tokenizer(folder: Path, rows: int, control: Sequence[str], **more: Any) -> dict[str, int]:
    """tokenizer.json with `rows` tokens: bytes, two newlines, pairs of bytes, then threes, last `control`; their ids.

    `more` are keys of the file besides.
    """
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    pairs = [(NEWLINE, NEWLINE), *((a, b) for a in alphabet for b in alphabet)]
    for pair in pairs + [(a + b, c) for a in alphabet[:64] for b in alphabet[:64] for c in alphabet]:
        if len(vocabulary) == rows - len(control):
            break
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(pair)
    for token in control:
        vocabulary[token] = len(vocabulary)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": vocabulary[token], "content": token, "special": True} | flags for token in control],
        **more,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return vocabulary
