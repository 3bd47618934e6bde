"""Find the notation of a loaded model."""

from __future__ import annotations

import pkgutil
from collections.abc import Collection
from functools import cache
from importlib import import_module

from pocketvlm.errors import RequestError, quoted
from pocketvlm.regions import families
from pocketvlm.regions.notation import Notation


@cache
def notations() -> dict[str, Notation]:
    """Return all notations by name."""
    known = [
        import_module(f"{families.__name__}.{module.name}").NOTATION
        for module in pkgutil.iter_modules(families.__path__)
    ]
    return {notation.name: notation for notation in known}


def notation_named(name: str) -> Notation:
    """Return the notation of this name. Raises RequestError."""
    known = notations()
    if name not in known:
        raise RequestError(f"{quoted(name)} is unknown; known: {', '.join(sorted(known))}", "regions")
    return known[name]


def notation_of(name: str, control_tokens: Collection[str], vision_family: str | None) -> Notation | None:
    """Return the notation of a model by its name, its control tokens, or the family of its vision encoder.

    Return None where it is not known, and if control tokens of several notations match.
    """
    known = notations().values()
    for notation in known:
        if notation.names is not None and notation.names.search(name.casefold()):
            return notation
    marked = [notation for notation in known if notation.mark in control_tokens]
    if marked:
        return marked[0] if len(marked) == 1 else None
    return next((notation for notation in known if vision_family in notation.vision_families), None)
