"""Whether the parts of a `oneOf` exclude each other, so that it is the same as an `anyOf`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from pocketvlm.structured.references import References

_MAX_PARTS = 300  # that are compared with each other
_MAX_TAGS = 50  # properties that may be the tag


def find_tag(parts: Sequence[Any], schema: Mapping[str, Any], references: References) -> str | None:
    """Return the property whose value says which part of the oneOf of `schema` an object is; None without one.

    OpenAPI's `discriminator` names it; else it is one that lists other values in each part.
    """
    objects = [part for part in parts if is_tagged(part, references)]
    if not 2 <= len(objects) <= _MAX_PARTS:
        return None
    discriminator = schema.get("discriminator")
    named = discriminator.get("propertyName") if isinstance(discriminator, Mapping) else None
    for name in [named] if isinstance(named, str) else references.properties(objects[0])[:_MAX_TAGS]:
        if _are_disjoint(references.values(part, name) for part in objects):
            return name
    return None


def is_tagged(part: Any, references: References) -> bool:
    """Whether a part of a oneOf with a tag is about objects."""
    return references.types(part) == {"object"} or (
        references.types(part) is None and bool(references.properties(part))
    )


def exclude_each_other(parts: Sequence[Any], tag: str | None, references: References) -> bool:
    """Whether it is certain that no value fits two parts, where tagged parts take only objects with a `tag`."""
    facts: list[tuple[set[str] | None, ...]] = []
    for part in parts:
        if part is False:
            continue
        if tag is not None and is_tagged(part, references):
            facts.append(({"object"}, None, references.values(part, tag)))
        else:
            facts.append((references.types(part), references.values(part), None))
    if _are_disjoint(values for _, values, _ in facts):
        return True
    return len(facts) <= _MAX_PARTS and all(
        any(_are_disjoint(pair) for pair in zip(a, b, strict=True)) for a, b in combinations(facts, 2)
    )


def _are_disjoint(sets: Iterable[set[str] | None]) -> bool:
    """Whether all are known, and nothing is in two of them."""
    everything: set[str] = set()
    for values in sets:
        if values is None or everything & values:
            return False
        everything |= values
    return True
