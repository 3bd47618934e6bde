"""A GGUF file of a vocabulary alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from pocketvlm_converters.tokenizer import Vocabulary


def write(vocabulary: Vocabulary, path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Its keys, with `changes`, as the architecture `llama`."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**vocabulary.metadata(), **(changes or {})}.items():
        if isinstance(value, tuple):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
