"""Change a document at random: nested dicts and lists of numbers, text and bytes.

Formats (`fuzz.formats`) turn files into documents and back, so every kind of file is changed by its structure with the
mutations of this module. A mutation is a JSON list, such as `["set", ["chunks", 0, "width"], -1]`. It names a place,
and does nothing where an earlier mutation took the place away. So any part of a list of mutations can be applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any

Path = Sequence[Any]
Mutation = list[Any]

# Of every JSON type, so that some are wrong wherever they stand.
WRONG: tuple[Any, ...] = (True, -1, 0.5, 1e308, float("nan"), "\ud800", [], [[]], {}, {"": None}, [None], 10**30)
TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "64",
    "default",
    "null",
    "\0",
    "a\nb",
    "\x1b[2J",
    "\ud800",
    "../x",
    "/etc/hostname",
    "é" * 99,
)
POWERS = (7, 8, 15, 16, 24, 31, 32, 53, 63, 64)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e38, -1e38, 1e308, math.inf, -math.inf, math.nan)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield every place in a document, parents before children, without the root."""
    if path:
        yield path
    for key, item in _items(value):
        yield from paths(item, (*path, key))


def at(document: Any, path: Path) -> Any:
    """Return the value at a place. Raises LookupError or TypeError where there is none."""
    for step in path:
        if isinstance(document, str | bytes):
            raise KeyError(step)
        document = document[step]
    return document


def replaced(document: Any, path: Path, value: Any) -> Any:
    """Return a copy of a document with another value at a place. Only the containers on the way are copied."""
    return value if not path else _inside(document, path, lambda parent, step: parent.__setitem__(step, value))


def random_mutations(document: Any, rng: Random, size: int, weights: Weights) -> list[Mutation]:
    """Return one mutation or, one time in four, up to four. `size` is that of the encoded document, in bytes."""
    count = 1 if rng.random() < 0.75 else rng.randint(2, 4)
    return [random_mutation(document, rng, size, weights) for _ in range(count)]


def random_mutation(document: Any, rng: Random, size: int, weights: Weights) -> Mutation:
    """Return a mutation of the document, or seldom one of the encoded bytes."""
    if rng.random() < 0.06:
        start, length = rng.randrange(size + 1), rng.choice([1, 1, 4, 20, 1000, size])
        new = rng.choice([b"", b"", bytes([rng.randrange(256)]), rng.randbytes(8), b"\0" * 64, b"[" * 3000])
        return ["splice", start, length, new.hex()]
    path = _choose(document, rng, weights)
    value = at(document, path)
    roll = rng.random()
    if roll < 0.08:
        return ["remove", path]
    if roll < 0.14 and isinstance(at(document, path[:-1]), list):
        return ["repeat", path, rng.choice([1, 1, 2, 100])]
    if roll < 0.26:
        other = _choose(document, rng, weights, near=path)
        return [rng.choice(["copy", "swap"]), path, other]
    if roll < 0.3 and isinstance(at(document, path[:-1]), dict):
        return ["rename", path, rng.choice([f"{path[-1]}x", str(path[-1])[:-1], "", "a b"])]
    if isinstance(value, bytes):
        start = rng.randrange(len(value) + 1)
        length = rng.choice([1, 1, 2, 4, 64, len(value)])
        new = rng.choice([b"", b"\0" * length, b"\xff" * length, rng.randbytes(min(length, 64)), rng.randbytes(1)])
        return ["bytes", path, start, length, new[:4096].hex()]
    if isinstance(value, str | list | dict) and rng.random() < 0.5:
        return _resized(path, value, rng)
    return ["set", path, odd(value, rng)]


def odd(value: Any, rng: Random) -> Any:
    """Return a value that is unlikely to be right: of the type of `value`, or now and then of another one."""
    if rng.random() < 0.15:
        return rng.choice([*WRONG, None, False, "", 0, 1, 10**400, "x" * 5000])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) or value is None:  # None stands for a number that the format computes
        near = value or rng.randrange(64)
        edge = 2 ** rng.choice(POWERS) + rng.choice([-1, 0, 1])
        return rng.choice([0, 1, -1, near + 1, near - 1, near * 2, near // 2, -near, near << 8, edge, -edge])
    if isinstance(value, float):
        return rng.choice([*FLOATS, value * 2, -value, value * 1e6])
    if isinstance(value, str):
        return rng.choice(TEXTS)
    return rng.choice(WRONG)


def _resized(path: list[Any], value: Any, rng: Random) -> Mutation:
    """Return a mutation that keeps a part of a text, list or dict, or repeats it."""
    if isinstance(value, dict):
        return ["pick", path, rng.sample(list(value), rng.randrange(len(value) + 1))]
    start, stop = sorted(rng.randrange(len(value) + 1) for _ in range(2))
    kind = rng.choice(["slice", "slice", "cut", "times", "wrap" if isinstance(value, list) else "insert"])
    if kind == "slice":
        return ["slice", path, start, stop]
    if kind == "cut":
        return ["slice", path, 0, stop]
    if kind == "times":
        return ["times", path, rng.choice([2, 2, 50, 5000 // (len(value) + 1) + 2])]
    return ["wrap", path] if kind == "wrap" else ["insert", path, start, rng.choice(TEXTS)]


def apply(document: Any, mutations: Sequence[Mutation]) -> Any:
    """Return the document with the mutations applied; those of the encoded bytes are left to `splice`."""
    for name, *arguments in mutations:
        with suppress(LookupError, TypeError, ValueError):  # an earlier mutation took the place away
            document = _CHANGES[name](document, *arguments) if name in _CHANGES else document
    return document


def splice(data: bytes, mutations: Sequence[Mutation]) -> bytes:
    """Return encoded bytes with those mutations applied that are about them."""
    for name, *arguments in mutations:
        if name == "splice":
            start, length, new = arguments
            data = data[:start] + bytes.fromhex(new) + data[start + length :]
    return data


def shown(document: Any, mutation: Mutation) -> str:
    """Describe a mutation for people: with the names of the list items on the way."""
    name, *arguments = mutation
    words = [_shown_path(document, one) if _is_path(one) else repr(one)[:60] for one in arguments]
    return " ".join([name, *words])


def _is_path(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(step, str | int) for step in value)


def _shown_path(document: Any, path: Path) -> str:
    steps: list[str] = []
    for number, step in enumerate(path):
        item: Any = None
        with suppress(LookupError, TypeError):
            item = at(document, path[: number + 1])
        names = (item.get(key) for key in ("key", "name", "type", "marker", "tag")) if isinstance(item, dict) else ()
        name = next((f"({value})" for value in names if isinstance(value, str | int)), "")
        steps.append(f"{step}{name if isinstance(step, int) else ''}")
    return ".".join(steps)


class Weights:
    """How often to enter each child of a container: by the logarithm of its number of leaves, to the power of 1.25.

    A vocabulary of 50,000 entries is then chosen 30 times as often as one setting. The numbers of leaves are kept, so
    use an object for one document.
    """

    def __init__(self) -> None:
        self._leaves: dict[int, int] = {}

    def leaves(self, value: Any) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) not in self._leaves:
            self._leaves[id(value)] = 1 + sum(self.leaves(item) for _, item in _items(value))
        return self._leaves[id(value)]

    def of(self, values: Sequence[Any]) -> list[float]:
        return [math.log2(1 + self.leaves(value)) ** 1.25 for value in values]


def _choose(document: Any, rng: Random, weights: Weights, near: Path | None = None) -> list[Any]:
    """Choose a place; with `near` often a sibling or cousin of that one."""
    if near and rng.random() < 0.7:
        start = list(near[: -rng.choice([1, 1, 2])])
        value, path = at(document, start), start
    else:
        value, path = document, []
    while isinstance(value, dict | list) and value:
        if path and rng.random() < 0.12:
            break
        keys = range(len(value)) if isinstance(value, list) else list(value)
        if len(keys) > 64:  # many like things
            key = rng.choice(keys)
        else:
            (key,) = rng.choices(keys, weights.of([value[key] for key in keys]))
        value, path = value[key], [*path, key]
    return path or [_items(document)[0][0]]


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def _inside(document: Any, path: Path, change: Callable[[Any, Any], Any]) -> Any:
    """Copy the containers on the way to a place, then let `change` work on the last one."""
    if not isinstance(document, dict | list):
        raise TypeError(f"no container at {path[0]}")
    copied: Any = document.copy()
    step = path[0]
    if len(path) == 1:
        copied[step]  # it must be there
        change(copied, step)
    else:
        copied[step] = _inside(copied[step], path[1:], change)
    return copied


def _remove(document: Any, path: Path) -> Any:
    return _inside(document, path, lambda parent, step: parent.__delitem__(step))


def _repeat(document: Any, path: Path, times: int) -> Any:
    return _inside(document, path, lambda parent, step: parent.__setitem__(slice(step, step), [parent[step]] * times))


def _copy(document: Any, path: Path, other: Path) -> Any:
    return replaced(document, path, at(document, other))


def _swap(document: Any, path: Path, other: Path) -> Any:
    here, there = at(document, path), at(document, other)
    return replaced(replaced(document, path, there), other, here)


def _rename(document: Any, path: Path, name: str) -> Any:
    def change(parent: Any, step: Any) -> None:
        entries = [(name if key == step else key, value) for key, value in parent.items()]
        parent.clear()
        parent.update(entries)

    return _inside(document, path, change)


def _bytes(document: Any, path: Path, start: int, length: int, new: str) -> Any:
    data = at(document, path)
    return replaced(document, path, data[:start] + bytes.fromhex(new) + data[start + length :])


def _pick(document: Any, path: Path, keys: list[str]) -> Any:
    value = at(document, path)
    return replaced(document, path, {key: value[key] for key in value if key in keys})


def _slice(document: Any, path: Path, start: int, stop: int) -> Any:
    return replaced(document, path, at(document, path)[start:stop])


def _times(document: Any, path: Path, times: int) -> Any:
    return replaced(document, path, at(document, path) * times)


def _wrap(document: Any, path: Path) -> Any:
    return replaced(document, path, [at(document, path)])


def _insert(document: Any, path: Path, start: int, text: str) -> Any:
    value = at(document, path)
    return replaced(document, path, value[:start] + text + value[start:])


_CHANGES: dict[str, Callable[..., Any]] = {
    "set": replaced,
    "remove": _remove,
    "repeat": _repeat,
    "copy": _copy,
    "swap": _swap,
    "rename": _rename,
    "bytes": _bytes,
    "pick": _pick,
    "slice": _slice,
    "times": _times,
    "wrap": _wrap,
    "insert": _insert,
}
