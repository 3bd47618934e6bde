"""Names of models as Ollama compares and lists them. Pure."""

from __future__ import annotations

_TAG = ":latest"
_HOMES = ("registry.ollama.ai/", "library/")  # of names without a host, and without an owner


def canonical(name: str) -> str:
    """Return a name that is equal for all names of one model."""
    name = name.strip().casefold()
    for home in _HOMES:
        name = name.removeprefix(home)
    return name.removesuffix(_TAG)


def listed(name: str) -> str:
    """Return a name with its tag, as in lists of models."""
    return name if ":" in name.rpartition("/")[2] else name + _TAG
