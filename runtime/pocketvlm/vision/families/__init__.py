"""One module per family, named by its `model_type`. `find` tries all modules of this folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from pocketvlm.errors import ModelFormatError
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


def check(header: GGUFHeader, model: GGUFHeader) -> None:
    """Check the tensors of a projector of a known family, and whether the model has positions for its pictures.

    Raises ModelFormatError.
    """
    module = next((module for _, module in _modules() if module.matches(header.metadata)), None)
    if module is None:
        return
    tensors = module.tensors(header)
    check_tensors(header, tensors)
    sections = model.array(key := f"{model.architecture}.rope.dimension_sections")
    if tensors.axes and model.architecture in module.DECODERS and (len(sections) < 2 or min(sections[:2]) <= 0):
        raise ModelFormatError(f"{key} is {sections}, but pictures need positions of several axes", model.path)


def decoders() -> frozenset[str]:
    """Return the architectures of the families' language models."""
    return frozenset(name for _, module in _modules() for name in module.DECODERS)


def _modules() -> Iterator[tuple[str, Any]]:
    for module_info in pkgutil.iter_modules(__path__):
        yield module_info.name, import_module(f"{__name__}.{module_info.name}")
