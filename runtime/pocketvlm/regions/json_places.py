"""Places in JSON that models write: fenced, among prose, with commas too many, cut, or with brackets missing. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from pocketvlm.regions.place import NUMBER, Kind, Place

_OPENING = re.compile(r"[{\[]")
# A string ends with its line at the latest: JSON has no line breaks in strings, and a lost quote costs one line.
_TOKEN = re.compile(rf"\"(?:[^\"\\\n]|\\.)*\"?|'[^'\\\n]*'(?=\s{{0,16}}[:,\]}}])|[{{}}\[\]:,]|{NUMBER}")
_MAX_DEPTH = 32
_MAX_NUMBERS = 512  # of one place
_LABELS = ("label", "text_content", "text", "name", "description")
_PICTURES = ("image", "picture")  # with a number from 1

_Value: TypeAlias = "str | float | _List"


@dataclass(frozen=True)
class Keys:
    """The keys of places in objects."""

    boxes: tuple[str, ...]
    points: tuple[str, ...] = ()
    polygons: tuple[str, ...] = ()

    def kind(self, key: str) -> Kind | None:
        if key in self.boxes:
            return "box"
        return "points" if key in self.points else "polygon" if key in self.polygons else None


@dataclass
class _List:
    items: list[float | _List] = field(default_factory=list)
    closed: bool = False


@dataclass
class _Object:
    start: int
    key: str | None = None
    awaits_value: bool = False
    values: list[tuple[str, _Value]] = field(default_factory=list)


def json_places(keys: Keys) -> Callable[[str], list[Place]]:
    """Return a parser of texts in which objects have these keys. It accepts any text."""

    def read(text: str) -> list[Place]:
        return sorted(_Reader(text, keys).places(), key=lambda place: place.span)

    return read


class _Reader:
    def __init__(self, text: str, keys: Keys) -> None:
        self._text, self._keys = text, keys
        self._stack: list[_Object | _List] = []
        self._too_deep = 0  # brackets that are open within the deepest level
        self._places: list[Place] = []

    def places(self) -> list[Place]:
        position = 0
        while match := (_TOKEN if self._stack else _OPENING).search(self._text, position):
            self._take(match[0], match.start())
            position = match.end()
        while self._stack:  # the answer was cut
            self._close(len(self._text))
        return self._places

    def _take(self, token: str, start: int) -> None:
        top = self._stack[-1] if self._stack else None
        if token in ("{", "["):
            self._open(token, start)
        elif token in ("}", "]"):
            self._end(_Object if token == "}" else _List, start + 1)
        elif isinstance(top, _Object):
            if token == ":":
                top.awaits_value = top.key is not None
            elif token == ",":
                top.key, top.awaits_value = None, False
            elif top.awaits_value and top.key is not None:
                value = _unquoted(token) if token[0] in "\"'" else float(token)
                top.values.append((top.key, value))
                top.key, top.awaits_value = None, False
            elif token[0] in "\"'":
                top.key = _unquoted(token)
        elif isinstance(top, _List) and token[0] in "-0123456789" and len(top.items) <= _MAX_NUMBERS:
            top.items.append(float(token))

    def _open(self, token: str, start: int) -> None:
        if len(self._stack) >= _MAX_DEPTH:
            self._too_deep += 1
            return
        top = self._stack[-1] if self._stack else None
        if token == "{":
            if isinstance(top, _Object) and not top.awaits_value:  # its own end is missing
                self._close(start)
            elif isinstance(top, _Object):
                top.key, top.awaits_value = None, False
            self._stack.append(_Object(start))
            return
        new = _List()
        if isinstance(top, _List) and len(top.items) <= _MAX_NUMBERS:
            top.items.append(new)
        elif isinstance(top, _Object) and top.awaits_value and top.key is not None:
            top.values.append((top.key, new))
            top.key, top.awaits_value = None, False
        self._stack.append(new)

    def _end(self, kind: type[_Object] | type[_List], end: int) -> None:
        """Close the nearest object or list, and what is open within it."""
        if self._too_deep:
            self._too_deep -= 1
            return
        if not any(isinstance(one, kind) for one in self._stack):
            return
        while True:
            top = self._stack[-1]
            if isinstance(top, _List):
                top.closed = True
            self._close(end)
            if isinstance(top, kind):
                return

    def _close(self, end: int) -> None:
        top = self._stack.pop()
        if not isinstance(top, _Object):
            return
        if not any(self._keys.kind(key) for key, _ in top.values):
            return
        label = next((text for name in _LABELS for text in _texts(top, name)), "")
        picture = next((number for name in _PICTURES for number in _numbers(top, name)), None)
        for key, value in top.values:
            kind = self._keys.kind(key)
            if kind is None or not isinstance(value, _List):
                continue
            for numbers in _outlines(kind, value):
                self._places.append(Place(kind, numbers, label, (top.start, end), picture))


def _outlines(kind: Kind, value: _List) -> Iterator[tuple[float, ...]]:
    """Yield the numbers of each place in a list, which may be one of lists."""
    leaves = [*_leaves(value)]
    if kind == "box":
        yield from (leaf for leaf in leaves if len(leaf) == 4)
    elif kind == "points":
        pairs = [leaf for leaf in leaves if len(leaf) == 2]
        if pairs:
            yield tuple(number for pair in pairs for number in pair)
    elif all(len(leaf) == 2 for leaf in leaves) and len(leaves) >= 3:
        yield tuple(number for pair in leaves for number in pair)
    else:
        yield from (leaf for leaf in leaves if len(leaf) >= 6 and len(leaf) % 2 == 0)


def _leaves(value: _List) -> Iterator[tuple[float, ...]]:
    """Yield the numbers of each complete list. The nesting is bounded by the reader's depth."""
    numbers = tuple(item for item in value.items if isinstance(item, float))
    if numbers and value.closed and len(numbers) <= _MAX_NUMBERS:
        yield numbers
    for item in value.items:
        if isinstance(item, _List):
            yield from _leaves(item)


def _texts(one: _Object, name: str) -> list[str]:
    return [value for key, value in one.values if key == name and isinstance(value, str)]


def _numbers(one: _Object, name: str) -> Iterator[int]:
    for key, value in one.values:
        if key == name and isinstance(value, str | float):
            match = re.search(r"\d{1,4}", value if isinstance(value, str) else f"{value:.0f}")
            if match:
                yield int(match[0])


def _unquoted(token: str) -> str:
    if token[0] == "'":
        return token[1:-1]
    closed = token if len(token) > 1 and token.endswith('"') else f'{token}"'
    try:
        text = json.loads(closed, strict=False)
    except ValueError:
        return token.strip('"')
    return text if isinstance(text, str) else ""
