"""One module per family, named by its `model_type`. They are found by looking, not by a list."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from pocketvlm.vision.family import Family


def find(metadata: dict[str, Any]) -> tuple[str, Family] | None:
    """The family whose projector this is, with its name; None where nobody knows it."""
    for found in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{found.name}")
        if module.matches(metadata):
            return found.name, module.from_metadata(metadata)
    return None
