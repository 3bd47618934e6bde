"""Jinja as Hugging Face sets it up for chat templates, with strings that remember who wrote each character.

`Traced` strings keep that memory through output, `+`, `~`, slices, `trim`, `split`, `join`, macros and set blocks: all
that chat templates do to move text. A function that computes a new string from user text (`upper`, `tojson`, `%`)
gives a string that counts as user text wholly, the template's own characters in it included: a control token among
them will be read as text. That errs on the safe side, and no common template does it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from operator import index
from types import FrameType
from typing import Any, SupportsIndex

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_environment

TEMPLATE = -2  # who wrote a run of characters; 0 and above: it stands for the picture of that number
USER = -1
_Runs = tuple[tuple[int, int], ...]  # (characters, who wrote them)


class RefusalError(TemplateError):
    """The template called raise_exception."""


class Traced(str):
    """A string whose characters are not all the template's. Without `runs`, a user wrote them all."""

    _runs: _Runs

    def __new__(cls, text: str, runs: _Runs | None = None) -> Traced:
        self = super().__new__(cls, text)
        self._runs = ((len(text), USER),) if runs is None else runs
        return self

    def __str__(self) -> str:  # str() is how templates write out
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __iter__(self) -> Iterator[str]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        start, stop, step = _bounds(key, len(self))
        if step != 1:
            return Traced(super().__getitem__(key))
        runs, at = [], 0
        for length, author in self._runs:
            kept = min(stop, at + length) - max(start, at)
            if kept > 0:
                runs.append((kept, author))
            at += length
        return Traced(super().__getitem__(key), tuple(runs))

    def _at(self, parts: Iterable[str], gap: int = 0) -> list[str]:
        """The slices that are these parts, which lie in this order and at least `gap` characters apart."""
        slices, at = [], 0
        for part in parts:
            start = self.find(part, at)
            slices.append(self[start : start + len(part)])
            at = start + len(part) + gap
        return slices

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> str:
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(super().removesuffix(suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._at(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._at(super().rsplit(sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._at(super().splitlines(keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._at(super().partition(sep))
        return head, middle, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._at(super().rpartition(sep))
        return head, middle, tail

    def replace(self, old: str, new: str, /, count: SupportsIndex = -1) -> str:
        # What a user's text is replaced by is user text as well, or a user could have it written.
        return _between(Traced(new), self.split(old, count)) if old else Traced(super().replace(old, new, count))

    def join(self, parts: Iterable[str], /) -> str:
        return _between(self, parts)


def runs_of(text: str) -> Iterator[tuple[str, int]]:
    """The string as plain pieces, each with who wrote it."""
    at = 0
    for length, author in text._runs if isinstance(text, Traced) else ((len(text), TEMPLATE),):
        if length:
            yield str.__getitem__(text, slice(at, at + length)), author
        at += length


def joined(values: Iterable[object]) -> str:
    """One string; neighbours of one author become one run."""
    strings = [_written(value) for value in values]
    runs: list[tuple[int, int]] = []
    for text in strings:
        for length, author in text._runs if isinstance(text, Traced) else ((len(text), TEMPLATE),):
            if runs and runs[-1][1] == author:
                length += runs.pop()[0]
            if length:
                runs.append((length, author))
    whole = "".join(strings)
    return Traced(whole, tuple(runs)) if any(author != TEMPLATE for _, author in runs) else whole


def compiled(source: str) -> Template:
    """Raises jinja2.TemplateSyntaxError, and whatever else Jinja's compiler may."""
    return _ENVIRONMENT.from_string(source)


def let_go(error: Exception) -> None:
    """Forget where in a template it was: Jinja's traceback refers to itself, and keeps what all callers hold alive."""
    trace = error.__traceback__
    while trace is not None:
        frame: FrameType | None = trace.tb_frame
        with suppress(RuntimeError):  # a frame that runs is a caller's
            while frame is not None:
                frame.clear()
                frame = frame.f_back
        trace = trace.tb_next
    error.__traceback__ = None


def _bounds(key: SupportsIndex | slice, length: int) -> tuple[int, int, int]:
    if isinstance(key, slice):
        return key.indices(length)
    at = index(key)  # a TypeError for content['type'], as templates ask of strings
    at += length if at < 0 else 0
    return at, at + 1, 1


def _between(separator: str, parts: Iterable[object]) -> str:
    pieces: list[object] = []
    for part in parts:
        pieces += [separator, part] if pieces else [part]
    return joined(pieces)


def _written(value: object) -> str:
    """What the template writes for a value."""
    return value if isinstance(value, str) else _kept(str(value), (value,))


def _strings(value: object) -> Iterator[str]:
    """All strings within lists, tuples and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _kept(result: Any, sources: Iterable[object]) -> Any:
    """A function's result; a new string made with a user's text among the sources becomes that user's."""
    if type(result) in (list, tuple):
        sources = tuple(sources)
        return type(result)(_kept(item, sources) if isinstance(item, str) else item for item in result)
    if not isinstance(result, str) or isinstance(result, Traced):
        return result
    strings = [text for source in sources for text in _strings(source)]
    passed_on = any(text is result for text in strings)
    return Traced(result) if not passed_on and any(isinstance(text, Traced) for text in strings) else result


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # copies Jinja's pass_context mark as well
    def guarded(*args: Any, **kwargs: Any) -> Any:
        return _kept(function(*args, **kwargs), (*args, *kwargs.values()))

    return guarded


class _CodeGenerator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  # jinja2 names it
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training. Here it only stands around its content."""

    tags = {"generation"}  # noqa: RUF012  # a set of the class, as in jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    concat = staticmethod(joined)
    intercepted_binops = frozenset({"%", "*"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, LoopControlExtension],
            finalize=_written,
        )
        self.filters = {name: _guarded(function) for name, function in self.filters.items()}
        self.filters.update(tojson=_guarded(_tojson), join=_join)
        self.globals.update(raise_exception=_refuse, strftime_now=_strftime_now, namespace=_namespace)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and getattr(function, "__name__", None) == "join" and len(args) == 1:
            return _between(owner, args[0])
        result = super().call(context, function, *args, **kwargs)
        if isinstance(function, Macro | LoopContext):  # template code, traced as it ran
            return result
        return _kept(result, (owner if isinstance(owner, str) else None, *args, *kwargs.values()))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return _kept(super().call_binop(context, operator, left, right), (left, right))


@pass_environment
def _join(environment: _Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    return _between(d, value if attribute is None else map(make_attrgetter(environment, attribute), value))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise RefusalError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Namespace(Namespace):
    """Jinja's, less the names by which a template could pretend that it is an object of another class."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not have an attribute {name!r}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    namespace = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        namespace[name] = value
    return namespace


_ENVIRONMENT = _Environment()
