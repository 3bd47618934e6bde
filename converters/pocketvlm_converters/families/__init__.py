"""The converters of families, one per module. They are discovered: a new family needs only a new file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from pocketvlm.errors import CheckpointError, quoted
from pocketvlm_converters.checkpoint.config import Section
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.family import Family


def find_family(checkpoint: Checkpoint) -> Family:
    """Return the family of `checkpoint`. Raises CheckpointError, listing the known model types, if there is none."""
    return check_model_type(checkpoint.config)(checkpoint)


def check_model_type(config: Section) -> type[Family]:
    """Return the family class of a configuration, without reading weights. Raises CheckpointError if there is none."""
    known = {kind: cls for cls in _all_families() for kind in cls.model_types}
    by_encoder = {types: cls for cls in _all_families() for types in cls.encoders}
    name = config.text("model_type")
    if family := by_encoder.get((name, config.section("vision_config").text("model_type", ""))):
        return family
    if name not in known:
        other_formats = {kind: hint for cls in _all_families() for kind, hint in cls.other_formats.items()}
        if hint := other_formats.get(name):
            raise CheckpointError(f"model_type {name} is {hint}", config.path)
        raise CheckpointError(f"unknown architecture {quoted(name)}; known: {', '.join(sorted(known))}", config.path)
    return known[name]


def _all_families() -> Iterable[type[Family]]:
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__:
                yield value
