"""One module per family, named by its `model_type`. `find` tries all modules of this folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from pocketvlm.files.gguf_header import GGUFHeader
from pocketvlm.vision.encoder_tensors import check_tensors
from pocketvlm.vision.family import Family


def find(metadata: dict[str, Any]) -> tuple[str, Family] | None:
    """Return the name and the family of the projector with this metadata, None where it is unknown.

    Raises KeyError for a missing key, ValueError for a value that makes no sense.
    """
    for name, module in _modules():
        if module.matches(metadata):
            return name, module.from_metadata(metadata)
    return None


def check(header: GGUFHeader) -> None:
    """Check the tensors of a projector of a known family. Raises ModelFormatError."""
    for _, module in _modules():
        if module.matches(header.metadata):
            check_tensors(header, module.tensors(header))
            return


def decoders() -> frozenset[str]:
    """Return the architectures of the families' language models."""
    return frozenset(name for _, module in _modules() for name in module.DECODERS)


def _modules() -> Iterator[tuple[str, Any]]:
    for module_info in pkgutil.iter_modules(__path__):
        yield module_info.name, import_module(f"{__name__}.{module_info.name}")
