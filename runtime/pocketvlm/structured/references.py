"""What `$ref` refers to within a schema, and what schemas say of their values, references followed. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from pocketvlm.structured.dialects import Schema, modern

_MISSING = object()
_DEPTH = 8  # of alternatives within alternatives that are looked into


class References:
    """Resolves the references of one schema, its root: pointers, anchors, and its own absolute ids."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._named: dict[str, Any] | None = None

    def resolve(self, reference: str) -> Any:
        """Return the schema that a reference names. Raises LookupError if it is not in this document."""
        base, _, fragment = reference.partition("#")
        target = self._names().get(base, _MISSING) if base else self._root
        if fragment and not fragment.startswith("/"):
            target = self._names().get("#" + unquote(fragment), _MISSING)
        for step in unquote(fragment).split("/")[1:] if fragment.startswith("/") else ():
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, Mapping):
                target = target.get(name, _MISSING)
            elif isinstance(target, Sequence) and not isinstance(target, str) and name.isdigit():
                target = target[int(name)] if int(name) < len(target) else _MISSING
            else:
                target = _MISSING
        if not isinstance(target, Mapping | bool):
            raise LookupError(reference)
        return target

    def depth(self) -> int:
        """Return how deep references can lead: at most through everything they refer to, one after another."""
        depth = _depth(self._root)
        references: set[str] = set()
        level: list[Any] = [self._root]
        while level:
            given = [item.get("$ref") for item in level if isinstance(item, Mapping)]
            references.update(reference for reference in given if isinstance(reference, str))
            level = [part for item in level for part in _parts(item)]
        for reference in references:
            with suppress(LookupError):
                depth += 1 + _depth(self.resolve(reference))
        return depth

    def conjuncts(self, schema: Any) -> Iterator[Schema]:
        """Yield a schema and all that it must match, too: targets of references and parts of allOf, in order."""
        stack: list[Any] = [schema]
        seen: dict[int, Any] = {}  # keeps them alive, so that an id stays that of one schema
        while stack:
            part = stack.pop()
            if not isinstance(part, Mapping) or id(part) in seen:
                continue
            seen[id(part)] = part
            now = modern(part, _ignore)
            yield now
            parts: list[Any] = []
            for key, value in now.items():
                if key == "allOf":
                    parts += value
                elif key == "$ref":
                    with suppress(LookupError):
                        parts.append(self.resolve(value))
            stack += reversed(parts)

    def values(self, schema: Any, name: str | None = None, depth: int = 0) -> set[str] | None:
        """Return the values that fit a schema, or its property `name`, as JSON; None where it does not list them.

        None also for floats, arrays and objects: 1 and 1.0 are the same value in different spellings.
        """
        for part in self.conjuncts(schema) if depth < _DEPTH else ():
            if name is None:
                result = _listed(part)
            else:
                result = self.values(part.get("properties", {}).get(name), depth=depth + 1)
            for key in ("anyOf", "oneOf"):
                if result is None and key in part:
                    options = [self.values(option, name, depth + 1) for option in part[key]]
                    if None not in options:
                        result = {value for option in options for value in option or ()}
            if result is not None:
                return result
        return None

    def types(self, schema: Any, depth: int = 0) -> set[str] | None:
        """Return the names of types that can fit a schema; None for all. "number" comes with "integer"."""
        for part in self.conjuncts(schema) if depth < _DEPTH else ():
            names: set[str] | None = None
            if "type" in part:
                names = {part["type"]} if isinstance(part["type"], str) else set(part["type"])
            for key in ("anyOf", "oneOf"):
                if names is None and key in part:
                    options = [self.types(option, depth + 1) for option in part[key]]
                    if None not in options:
                        names = {name for option in options for name in option or ()}
            if names is not None:
                return names | {"integer"} if "number" in names else names
        return None

    def requires(self, schema: Any, name: str, depth: int = 0) -> bool:
        """Whether every object that fits has the property `name`."""
        return depth < _DEPTH and any(
            name in part.get("required", ())
            or any(
                key in part and all(self.requires(option, name, depth + 1) for option in part[key])
                for key in ("anyOf", "oneOf")
            )
            for part in self.conjuncts(schema)
        )

    def properties(self, schema: Any, depth: int = 0) -> list[str]:
        """Return the names of properties that a schema mentions."""
        names: list[str] = []
        for part in self.conjuncts(schema) if depth < _DEPTH else ():
            names += part.get("properties", ())
            for option in [*part.get("anyOf", ()), *part.get("oneOf", ())]:
                names += self.properties(option, depth + 1)
        return list(dict.fromkeys(names))

    def _names(self) -> dict[str, Any]:
        """Return schemas by `$id`, and by `$anchor` with "#" before it."""
        if self._named is None:
            self._named = {}
            stack: list[Any] = [self._root]
            while stack:
                value = stack.pop()
                if isinstance(value, Mapping):
                    for key in ("$id", "id", "$anchor"):
                        if isinstance(name := value.get(key), str):
                            name = f"#{name}" if key == "$anchor" else name.removesuffix("#")
                            self._named.setdefault(name, value)
                    stack += value.values()
                elif isinstance(value, list | tuple):
                    stack += value
        return self._named


def _ignore(_: str) -> None:
    pass


def _listed(schema: Mapping[str, Any]) -> set[str] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is None or not all(value is None or isinstance(value, str | bool | int) for value in values):
        return None
    return {json.dumps(value) for value in values}


def _depth(value: Any) -> int:
    levels = 0
    level = [value]
    while level := [part for item in level for part in _parts(item)]:
        levels += 1
    return levels


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list | tuple) else ()
