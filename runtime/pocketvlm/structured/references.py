"""What `$ref` refers to within a schema, and what schemas say of their values, references followed. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import unquote

from pocketvlm.structured.dialects import Schema, modern

_MISSING = object()
_INDEX = re.compile("[0-9]{1,9}")  # of a list, in a pointer
T = TypeVar("T")


class References:
    """Resolves the references of one schema, its root: pointers, anchors, and its own absolute ids.

    Facts about each schema are computed once: schemas refer to each other in circles. In a circle a fact is unknown.
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._named: dict[str, Any] | None = None
        # By the id of a schema, which is kept, so that the id stays its own.
        self._modern: dict[int, tuple[Any, Schema]] = {}
        self._facts: dict[tuple[str, int, str | None], Any] = {}

    def modern(self, schema: Mapping[str, Any]) -> Schema:
        """Return a schema in today's keywords. Do not change it."""
        if id(schema) not in self._modern:
            self._modern[id(schema)] = schema, modern(schema, _ignore)
        return self._modern[id(schema)][1]

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
            elif isinstance(target, Sequence) and not isinstance(target, str) and _INDEX.fullmatch(name):
                target = target[int(name)] if int(name) < len(target) else _MISSING
            else:
                target = _MISSING
        if not isinstance(target, Mapping | bool):
            raise LookupError(reference)
        return target

    def depth(self, limit: int) -> int:
        """Return how deep references can lead: at most through everything they refer to, one after another.

        Beyond `limit` it is not exact.
        """
        depth = _depth(self._root)
        references: set[str] = set()
        level: list[Any] = [self._root]
        while level:
            given = [item.get("$ref") for item in level if isinstance(item, Mapping)]
            references.update(reference for reference in given if isinstance(reference, str))
            level = [part for item in level for part in _parts(item)]
        for reference in references:
            if depth > limit:
                break
            with suppress(LookupError):
                depth += 1 + _depth(self.resolve(reference))
        return depth

    @cached_property
    def combines(self) -> bool:
        """Whether several schemas of the document may apply to one value."""
        return any({"allOf", "anyOf", "oneOf", "$ref"} & set(self.modern(value)) for value in self._objects())

    def conjuncts(self, schema: Any) -> Iterator[Schema]:
        """Yield a schema and all that it must match, too: targets of references and parts of allOf, in order."""
        stack: list[Any] = [schema]
        seen: set[int] = set()
        while stack:
            part = stack.pop()
            if not isinstance(part, Mapping) or id(part) in seen:
                continue
            now = self.modern(part)
            seen.add(id(part))
            yield now
            parts: list[Any] = []
            for key, value in now.items():
                if key == "allOf":
                    parts += value
                elif key == "$ref":
                    with suppress(LookupError):
                        parts.append(self.resolve(value))
            stack += reversed(parts)

    def values(self, schema: Any, name: str | None = None) -> set[str] | None:
        """Return the values that fit a schema, or its property `name`, as JSON; None where it does not list them.

        None also for floats, arrays and objects: 1 and 1.0 are the same value in different spellings.
        """
        return self._fact("values", schema, name, None, self._find_values)

    def types(self, schema: Any) -> set[str] | None:
        """Return the names of types that can fit a schema; None for all. "number" comes with "integer"."""
        return self._fact("types", schema, None, None, self._find_types)

    def requires(self, schema: Any, name: str) -> bool:
        """Whether every object that fits has the property `name`."""
        return self._fact("requires", schema, name, False, self._find_requires)

    def properties(self, schema: Any) -> list[str]:
        """Return the names of properties that a schema mentions."""
        return self._fact("properties", schema, None, [], self._find_properties)

    def _fact(self, kind: str, schema: Any, name: str | None, unknown: T, find: Callable[[Any, str | None], T]) -> T:
        if not isinstance(schema, Mapping):
            return unknown
        self.modern(schema)  # keeps it
        key = kind, id(schema), name
        if key not in self._facts:
            self._facts[key] = unknown
            self._facts[key] = find(schema, name)
        result: T = self._facts[key]
        return result

    def _find_values(self, schema: Any, name: str | None) -> set[str] | None:
        for part in self.conjuncts(schema):
            result = _listed(part) if name is None else self.values(part.get("properties", {}).get(name))
            for key in ("anyOf", "oneOf"):
                if result is None and key in part:
                    result = _union([self.values(option, name) for option in part[key]])
            if result is not None:
                return result
        return None

    def _find_types(self, schema: Any, _: str | None) -> set[str] | None:
        for part in self.conjuncts(schema):
            result: set[str] | None = None
            if "type" in part:
                result = {part["type"]} if isinstance(part["type"], str) else set(part["type"])
            for key in ("anyOf", "oneOf"):
                if result is None and key in part:
                    result = _union([self.types(option) for option in part[key]])
            if result is not None:
                return result | {"integer"} if "number" in result else result
        return None

    def _find_requires(self, schema: Any, name: str | None) -> bool:
        assert name is not None
        return any(
            name in part.get("required", ())
            or any(
                key in part and all(self.requires(option, name) for option in part[key]) for key in ("anyOf", "oneOf")
            )
            for part in self.conjuncts(schema)
        )

    def _find_properties(self, schema: Any, _: str | None) -> list[str]:
        names: dict[str, None] = {}
        for part in self.conjuncts(schema):
            names |= dict.fromkeys(part.get("properties", ()))
            for option in [*part.get("anyOf", ()), *part.get("oneOf", ())]:
                names |= dict.fromkeys(self.properties(option))
        return list(names)

    def _names(self) -> dict[str, Any]:
        """Return schemas by `$id`, and by `$anchor` with "#" before it."""
        if self._named is None:
            self._named = {}
            for value in self._objects():
                for key in ("$id", "id", "$anchor"):
                    if isinstance(name := value.get(key), str):
                        name = f"#{name}" if key == "$anchor" else name.removesuffix("#")
                        self._named.setdefault(name, value)
        return self._named

    def _objects(self) -> Iterator[Mapping[str, Any]]:
        """Yield all objects of the document."""
        stack: list[Any] = [self._root]
        while stack:
            value = stack.pop()
            if isinstance(value, Mapping):
                yield value
            stack += _parts(value)


def _ignore(_: str) -> None:
    pass


def _union(sets: Sequence[set[str] | None]) -> set[str] | None:
    known = [values for values in sets if values is not None]
    return {value for values in known for value in values} if len(known) == len(sets) else None


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
