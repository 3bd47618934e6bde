"""A checkpoint of the catalogue with random bfloat16 weights, at full size, made without torch."""

from __future__ import annotations

import json
from pathlib import Path

from random_files import Pool, write_safetensors, write_tokenizer

from pocketvlm.vision import families
from pocketvlm_converters.catalog.entry import Entry
from pocketvlm_converters.catalog.meta_checkpoint import MetaCheckpoint
from pocketvlm_converters.checkpoint.folder import Tensor
from pocketvlm_converters.families import find_family

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


class Recorded(MetaCheckpoint):
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
    match = families.find(dict(family.projector().metadata))
    assert match is not None
    layout = match[1]
    write_safetensors(folder / "model.safetensors", checkpoint.shapes, Pool().tensor)
    # Text around pictures that is not a token is made of byte tokens; mostly it is a newline.
    tokens = [token for token in dict.fromkeys((layout.image_token, *layout.control_tokens())) if token.strip()]
    _write_text(folder, rows, [*CONTROL, *tokens], layout.image_token)
    for name in ("config", "preprocessor_config", "processor_config"):
        values = getattr(entry, name.removesuffix("_config"))
        if values:
            (folder / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")


def _write_text(folder: Path, rows: int, control: list[str], image: str) -> None:
    write_tokenizer(folder, rows, control)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}" + image + "{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
