"""A GGUF file of a vocabulary alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from pocketvlm_converters.gguf import add_value
from pocketvlm_converters.tokenizer import Vocabulary


def write(
    vocabulary: Vocabulary, path: Path, changes: Mapping[str, Any] | None = None, *, foreign: bool = False
) -> Path:
    """Its keys, with `changes`, as the architecture `llama`; without our own ones if `foreign`."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**vocabulary.metadata(), **(changes or {})}.items():
        if not (foreign and key.startswith("pocketvlm.")):
            add_value(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
