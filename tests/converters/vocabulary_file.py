"""A GGUF file of a vocabulary alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from pocketvlm_converters.gguf import add_value
from pocketvlm_converters.tokenizer import Vocabulary


def write(vocabulary: Vocabulary, path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Its keys, with `changes`, as the architecture `llama`."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**vocabulary.metadata(), **(changes or {})}.items():
        add_value(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
