"""Limit what a chat template may do: it is a program, in a file that may come from anywhere.

Each value that a template makes has a limit of size, so that whatever is done with one value ends soon. What is done
between two checks is one such operation, and the checks count what was made and the time. Values of a template cannot
be changed once they are made, so each is weighed only once.
"""

from __future__ import annotations

import re
import string
import time
from collections.abc import Callable, Iterator, Mapping, Set, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

T = TypeVar("T")
_OF_INPUT, _TOTAL_OF_INPUT = 16, 256  # what the limits grow by, for each character of a conversation
_MAX_BITS = 1 << 14  # of an integer; Python reads those of up to 4,300 digits
_REMEMBERED = 100  # the least weight of lists and dicts that are weighed only once
_REFERENCE = 8  # bytes of an element of a list
_BETWEEN_CHECKS = 256
_READ_AT_ONCE = 64  # characters or elements that are compared or searched in the time of one step
_NAMED = re.compile(r"%\([^()%]{0,100}\)")  # a field with an ordinary name
_WIDE_FIELD = re.compile(r"%[-+ #0]*(?:\*|\d{4}|\d*\.(?:\*|\d{4}))")
_FIELD = 1000  # characters, more than a field of a format without text may have


class LimitError(BaseException):
    """A template does too much. Not an Exception: code that tries what a template accepts must not catch it."""


@dataclass(frozen=True)
class Limits:
    """The limits of one rendering: `seconds` of processor time, and what the template makes.

    `size` is that of each value, in characters and elements, and `total` that of all. Both grow with the conversation.
    """

    seconds: float = 10.0
    size: int = 1 << 20
    total: int = 1 << 26


class _Meter:
    def __init__(self, limits: Limits, given: object) -> None:
        self._seconds = limits.seconds
        self._ends = _ENDS.get() or time.thread_time() + limits.seconds
        self._known: dict[int, tuple[object, int]] = {}
        self.size = 1 << 62
        weight = self.weigh(given)
        self.size = limits.size + _OF_INPUT * weight
        self._total = self._left = limits.total + _TOTAL_OF_INPUT * weight
        self._next_check = self._left

    def spend(self, amount: int) -> None:
        self._left -= amount
        if self._left <= self._next_check:
            self._next_check = self._left - _BETWEEN_CHECKS
            if self._left < 0:
                raise LimitError(f"does more than {self._total:,} steps, or makes as many characters")
            if time.thread_time() > self._ends:
                raise LimitError(f"takes more than {self._seconds:g} s")

    def expect(self, size: int) -> None:
        if size > self.size:
            raise LimitError(f"makes a value of more than {self.size:,} characters or elements")

    def weigh(self, value: object) -> int:
        """Return the size of a value written out: equal parts count each time."""
        if isinstance(value, str | bytes | range):
            return len(value) + 1
        if not isinstance(value, list | tuple | Mapping | Set | ValuesView):
            return 1
        if (known := self._known.get(id(value))) is not None:
            return known[1]
        weight = 1
        for item in chain(value.keys(), value.values()) if isinstance(value, Mapping) else value:
            weight += self.weigh(item)
            self.expect(weight)
        if weight >= _REMEMBERED:
            self._known[id(value)] = value, weight  # which keeps it alive, so that no other value gets its id
        return weight


_METER: ContextVar[_Meter | None] = ContextVar("_METER", default=None)
_ENDS: ContextVar[float | None] = ContextVar("_ENDS", default=None)  # by the clock of the thread's processor time


@contextmanager
def limited(limits: Limits, given: object) -> Iterator[None]:
    """Limit the templates that run inside, which get `given`. They raise LimitError, and so may this."""
    token = _METER.set(_Meter(limits, given))
    try:
        yield
    finally:
        _METER.reset(token)


@contextmanager
def sharing_time(limits: Limits) -> Iterator[None]:
    """Give all renderings inside together the time of one."""
    token = _ENDS.set(time.thread_time() + limits.seconds)
    try:
        yield
    finally:
        _ENDS.reset(token)


def shares_time() -> bool:
    return _ENDS.get() is not None


def step() -> None:
    """Count the beginning of a block: of a loop, a macro, a branch."""
    if (meter := _METER.get()) is not None:
        meter.spend(1)


def read(*values: object) -> None:
    """Count an operation that may look at all of these values, such as a comparison."""
    if (meter := _METER.get()) is not None:
        meter.spend(1 + sum(map(meter.weigh, values)) // _READ_AT_ONCE)


def made(value: T) -> T:
    """Return a value that a template made, if its size is within the limits."""
    if (meter := _METER.get()) is not None:
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise LimitError(f"makes a number of more than {_MAX_BITS:,} bits")
        weight = meter.weigh(value)
        meter.expect(weight)
        meter.spend(_REFERENCE * len(value) if isinstance(value, list | tuple | dict) else weight)
    return value


def sliced(value: T) -> T:
    """Return a slice, which is not larger than its source, and so within the limit of size."""
    if (meter := _METER.get()) is not None:
        width = 1 if isinstance(value, str) else _REFERENCE
        meter.spend(width * len(value) if isinstance(value, list | tuple | str) else 1)
    return value


def written(text: str) -> str:
    """Return a text of the template's output, if the output so far is within the limits."""
    if (meter := _METER.get()) is not None:
        meter.spend(len(text) + 2 * _REFERENCE)  # the text, and those between two texts
    return text


def expect(size: int) -> None:
    """Raise LimitError before a value of this size is made."""
    if (meter := _METER.get()) is not None:
        meter.expect(size)


def weight_of(value: object) -> int:
    meter = _METER.get()
    return 0 if meter is None else meter.weigh(value)


# ---- operations whose result may be far larger than what they get


def expect_operation(operator: str, left: Any, right: Any) -> None:
    """Raise LimitError where `left` OPERATOR `right` would be too large."""
    if operator == "*":
        for number, other in ((left, right), (right, left)):
            if isinstance(number, int) and not isinstance(other, int | float):
                expect(number * (len(other) if isinstance(other, str) else weight_of(other)))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * right > _MAX_BITS:
            raise LimitError(f"makes a number of more than {_MAX_BITS:,} bits")
    elif operator == "%" and isinstance(left, str):
        expect_percent(left, right)


def expect_percent(text: str, *values: object) -> None:
    """Raise LimitError where text % values would be too large."""
    expect(len(text) + text.count("%") * (_FIELD + weight_of(values)))
    text = _NAMED.sub("%", text)
    if "%(" in text or _WIDE_FIELD.search(text):  # a name may hold parentheses
        raise LimitError("has a format with a wide field")


def expect_format(text: str, *values: object) -> None:
    """Raise LimitError where text.format(values) would be too large."""
    fields = 0
    for _, name, spec, _ in string.Formatter().parse(text):
        fields += name is not None
        if spec and ("{" in spec or re.search(r"\d{4}", spec)):
            raise LimitError("has a format with a wide field")
    expect(len(text) + fields * (_FIELD + weight_of(values)))


def expect_method(text: str, name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Raise LimitError where a method of a string would return too much."""
    if growth := _METHODS.get(name):
        expect(growth(text, *arguments, **options))


def expect_filter(name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Raise LimitError where a filter of Jinja would return too much. `arguments` begin with the filtered value."""
    if growth := _FILTERS.get(name):
        expect(growth(*arguments, **options))


def _replaced(text: str, old: str, new: str, count: int | None = None) -> int:  # noqa: ARG001  # `count` bounds less
    return str(text).count(str(old)) * len(str(new))


def _indented(text: str, width: int | str = 4, *_: object, **__: object) -> int:
    return (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width)


def _listed(_: object, count: int, fill_with: object = None) -> int:
    return count * weight_of(fill_with)


def _rounded(_: object, precision: int = 0, *__: object, **___: object) -> int:
    return 10 * abs(precision) ** 2  # it computes a power of ten


def _json(
    value: object,
    _ascii: object = None,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: object = None,  # noqa: ARG001  # the signature of the filter
    **_: object,
) -> int:
    width = len(indent) if isinstance(indent, str) else indent or 0
    marks = sum(len(mark) for mark in separators or ())
    return sum(width * depth + marks for depth in _depths(value, 1)) if width or marks else 0


def _depths(value: object, depth: int) -> Iterator[int]:
    """Yield how deep each element of a JSON value lies."""
    yield depth
    if isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _depths(item, depth + 1)


_METHODS: Mapping[str, Callable[..., int]] = {
    **dict.fromkeys(("ljust", "rjust", "center", "zfill"), lambda _, width, *__: width),
    "expandtabs": lambda text, tabsize=8: text.count("\t") * tabsize,
    "replace": _replaced,
    "translate": lambda text, table: len(text) * weight_of(table),
}
_FILTERS: Mapping[str, Callable[..., int]] = {
    "batch": _listed,
    "center": lambda _, width=80: width,
    "indent": _indented,
    "replace": _replaced,
    "round": _rounded,
    "slice": _listed,
    "tojson": _json,
}
