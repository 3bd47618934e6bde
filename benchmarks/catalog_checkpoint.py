"""A checkpoint of the catalogue with random bfloat16 weights, at full size, made without torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from large_checkpoint import WORDS

from pocketvlm.vision import families
from pocketvlm_converters.catalog.entry import Entry
from pocketvlm_converters.catalog.hollow import HollowCheckpoint
from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.family import find_family

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
POOL = 1 << 22  # values, of which all tensors are pieces


class Recorded(HollowCheckpoint):
    """Remembers what its family asks for."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self.shapes[name] = shape
        return super().tensor(name, shape)


def write_entry(entry: Entry, folder: Path) -> None:
    """Only where the tokenizer's pieces are of bytes."""
    assert entry.tokenizer == "bytes", entry.id
    checkpoint = Recorded(entry)
    family = find_family(checkpoint)
    rows = next(w.tensor.shape[0] for w in family.language().weights if w.name == "token_embd.weight")
    found = families.find(dict(family.projector().metadata))
    assert found is not None
    layout = found[1]
    _write_weights(folder / "model.safetensors", checkpoint.shapes)
    # Text around pictures that is no token is spelled by bytes: a newline, mostly.
    tokens = [token for token in dict.fromkeys((layout.image_token, *layout.control_tokens())) if token.strip()]
    _write_tokenizer(folder, rows, [*CONTROL, *tokens], layout.image_token)
    for name in ("config", "preprocessor_config", "processor_config"):
        values = getattr(entry, name.removesuffix("_config"))
        if values:
            (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")


def _write_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    pool = _bfloat16(rng.standard_normal(POOL, np.float32) * np.float32(0.02))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            left = math.prod(shape)
            if "norm" in name and len(shape) == 1 and not name.endswith("bias"):
                file.write(_bfloat16(1 + rng.standard_normal(left, np.float32) * np.float32(0.02)).data)
                continue
            while left:
                at = int(rng.integers(POOL // 2))
                block = pool[at : at + left]
                left -= len(block)
                file.write(block.data)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _write_tokenizer(folder: Path, rows: int, control: list[str], image: str) -> None:
    """A vocabulary as large as the embedding: two newlines, pairs of bytes, then threes, with their merges."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    newline = "\u010a"  # as ByteLevel spells it
    merges: list[tuple[str, str]] = []
    pairs = [(newline, newline), *((a, b) for a in alphabet for b in alphabet)]
    for pair in pairs + [(a + b, c) for a in alphabet[:64] for b in alphabet[:64] for c in alphabet]:
        if len(vocabulary) == rows - len(control):
            break
        if "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(pair)
    for token in control:
        vocabulary[token] = len(vocabulary)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": vocabulary[token], "content": token, "special": True} | flags for token in control]
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}" + image + "{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
