"""One module per family, named by its `model_type`. `find` tries all modules of this folder."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from pocketvlm.vision.family import Family


def find(metadata: dict[str, Any]) -> tuple[str, Family] | None:
    """Return the name and the family of the projector with this metadata, None where it is unknown.

    Raises KeyError for a missing key, ValueError for a value that makes no sense.
    """
    for module_info in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{module_info.name}")
        if module.matches(metadata):
            return module_info.name, module.from_metadata(metadata)
    return None
