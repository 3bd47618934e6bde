"""Find the preset of a loaded model."""

from __future__ import annotations

import pkgutil
import re
from functools import cache
from importlib import import_module

from pocketvlm.engine.interface import EngineInfo
from pocketvlm.errors import RequestError, quoted
from pocketvlm.reading import families
from pocketvlm.reading.preset import Preset

GENERAL = Preset(
    "general",
    "Write down everything that this page says, as Markdown, in the order in which people read it. Keep headings, "
    "lists and tables. Add nothing.",
    max_tokens=4096,
)
# The model in the box knows drawn shapes and this question.
_IOTA = Preset("iota", "What is in the picture?", names=re.compile(r"iota"), max_tokens=256)


@cache
def presets() -> dict[str, Preset]:
    """Return all presets by name: `general`, and one for each kind of model that has a prompt of its own."""
    known = [
        import_module(f"{families.__name__}.{module.name}").PRESET for module in pkgutil.iter_modules(families.__path__)
    ]
    return {preset.name: preset for preset in (GENERAL, _IOTA, *known)}


def preset_for(info: EngineInfo, name: str | None = None) -> Preset:
    """Return the preset of this `name`, or that of the model, or the general one. Raises RequestError."""
    known = presets()
    if name is not None:
        if name not in known:
            raise RequestError(f"{quoted(name)} is unknown; known: {', '.join(sorted(known))}", "preset")
        return known[name]
    model = info.name.casefold()
    for preset in known.values():
        if preset.names is not None and preset.names.search(model):
            return preset
    marked = [preset for preset in known.values() if preset.mark in info.control_tokens]
    return marked[0] if len(marked) == 1 else GENERAL
