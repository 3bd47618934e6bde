"""One module per family, found by name: a new file is all that a new family needs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.config import Section, short
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.family import Family


def find_family(checkpoint: Checkpoint) -> Family:
    """Raises CheckpointError with the known model types where none fits."""
    return check_model_type(checkpoint.config)(checkpoint)


def check_model_type(config: Section) -> type[Family]:
    """The family of a configuration, before there are weights. Raises CheckpointError likewise."""
    known = {kind: cls for cls in _all_families() for kind in cls.model_types}
    by_encoder = {both: cls for cls in _all_families() for both in cls.encoders}
    name = config.text("model_type")
    if found := by_encoder.get((name, config.section("vision_config").text("model_type", ""))):
        return found
    if name not in known:
        other = {kind: told for cls in _all_families() for kind, told in cls.other_formats.items()}
        if told := other.get(name):
            raise CheckpointError(f"model_type {name} is {told}", config.path)
        raise CheckpointError(f"unknown architecture {short(name)}; known: {', '.join(sorted(known))}", config.path)
    return known[name]


def _all_families() -> Iterable[type[Family]]:
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__:
                yield value
