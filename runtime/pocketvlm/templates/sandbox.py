"""Run chat templates in Jinja as Hugging Face does, with strings that record the author of each character.

`Traced` strings keep this record through output, `+`, `~`, slices, `trim`, `split`, `join`, macros and set blocks: all
that chat templates do to move text. If a function computes a new string from user text (`upper`, `tojson`, `%`), the
whole string counts as user text, including the template's own characters in it, and a control token among these is read
as text. This is the safe choice, and no common template does it.

A template also has limits of time and size, if it runs inside of `limits.limited`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Set, ValuesView
from contextlib import suppress
from datetime import datetime
from operator import index
from types import FrameType
from typing import Any, SupportsIndex

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import do_format, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_environment

from pocketvlm.errors import quoted
from pocketvlm.templates import limits
from pocketvlm.templates.metered_code import MeteredCode

# Authors of a run of characters. A run with an author of 0 or more stands for the picture of that index, and one with
# an author of FIRST_TEXT or less is from a text that the caller numbered.
USER, TEMPLATE, FIRST_TEXT = -1, -2, -3
_MAX_SOURCE = 1 << 18  # characters of a template, several times what models have; compiling takes seconds
_Runs = tuple[tuple[int, int], ...]  # (number of characters, author)


# Filters for web pages and consoles, and methods, that may take or make far more than they get. No model needs them.
_UNLIMITED_FILTERS = ("pprint", "striptags", "urlize", "wordwrap")
_UNLIMITED_METHODS = frozenset({"encode", "from_bytes", "striptags", "to_bytes"})


class RefusalError(TemplateError):
    """The template called raise_exception."""


class Traced(str):
    """A string with characters that the template did not write. Without `runs`, all of them are by `author`."""

    _runs: _Runs

    def __new__(cls, text: str, runs: _Runs | None = None, *, author: int = USER) -> Traced:
        self = super().__new__(cls, text)
        self._runs = ((len(text), author),) if runs is None else runs
        return self

    def __str__(self) -> str:  # Jinja's output calls str()
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        start, stop, step = _bounds(key, len(self))
        if step != 1:
            return Traced(super().__getitem__(key), author=_author_of((self,)))
        runs, run_start = [], 0
        for length, author in self._runs:
            overlap = min(stop, run_start + length) - max(start, run_start)
            if overlap > 0:
                runs.append((overlap, author))
            run_start += length
        return Traced(super().__getitem__(key), tuple(runs))

    def _slices(self, parts: Iterable[str], gap: int = 0) -> list[str]:
        """Return the slices that equal `parts`, which are in this order and at least `gap` characters apart."""
        slices, end = [], 0
        for part in parts:
            start = self.find(part, end)
            slices.append(self[start : start + len(part)])
            end = start + len(part) + gap
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
        return self._slices(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._slices(super().rsplit(sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._slices(super().splitlines(keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._slices(super().partition(sep))
        return head, middle, tail

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, tail = self._slices(super().rpartition(sep))
        return head, middle, tail

    def replace(self, old: str, new: str, /, count: SupportsIndex = -1) -> str:
        # The replacement counts as user text, too; otherwise a user could make the template write it.
        if not old:
            return Traced(super().replace(old, new, count), author=_author_of((self,)))
        return _join(Traced(new), self.split(old, count))

    def join(self, parts: Iterable[str], /) -> str:
        return _join(self, parts)


def runs_of(text: str) -> Iterator[tuple[str, int]]:
    """Yield plain pieces of the string, each with its author."""
    start = 0
    for length, author in _runs(text):
        if length:
            yield str.__getitem__(text, slice(start, start + length)), author
        start += length


def joined(values: Iterable[object]) -> str:
    """Return one string; adjacent runs of one author become one run."""
    strings, size = [], 0
    for value in values:
        strings.append(_output(value))
        size += len(strings[-1])
        limits.expect(size)
    runs: list[tuple[int, int]] = []
    for text in strings:
        for length, author in _runs(text):
            if runs and runs[-1][1] == author:
                length += runs.pop()[0]
            if length:
                runs.append((length, author))
    whole: str = limits.made("".join(strings))
    return Traced(whole, tuple(runs)) if any(author != TEMPLATE for _, author in runs) else whole


@functools.lru_cache(maxsize=4)  # loading a model reads its template twice
def compiled(source: str, limit: limits.Limits) -> Template:
    """Compile a template within limits.

    Raises jinja2.TemplateSyntaxError, any other error of Jinja's compiler, and LimitError.
    """
    if len(source) > _MAX_SOURCE:
        raise limits.LimitError(f"has {len(source):,} characters, more than {_MAX_SOURCE:,}")
    with limits.limited(limit, None):  # the compiler evaluates constant expressions
        return _ENVIRONMENT.from_string(source)


def drop_traceback(error: Exception) -> None:
    """Remove the traceback of a template's error: Jinja's is a reference cycle that keeps all callers' locals alive."""
    trace = error.__traceback__
    while trace is not None:
        frame: FrameType | None = trace.tb_frame
        with suppress(RuntimeError):  # raised for a frame that is still running, which is a caller's
            while frame is not None:
                frame.clear()
                frame = frame.f_back
        trace = trace.tb_next
    error.__traceback__ = None


def _bounds(key: SupportsIndex | slice, length: int) -> tuple[int, int, int]:
    if isinstance(key, slice):
        return key.indices(length)
    start = index(key)  # TypeError for content['type'], which templates try on strings
    start += length if start < 0 else 0
    return start, start + 1, 1


def _runs(text: str) -> _Runs:
    return text._runs if isinstance(text, Traced) else ((len(text), TEMPLATE),)


def _join(separator: str, parts: Iterable[object]) -> str:
    pieces: list[object] = []
    for part in parts:
        pieces += [separator, part] if pieces else [part]
    return joined(pieces)


def _output(value: object) -> str:
    """Return what the template writes for a value."""
    if isinstance(value, str):
        return value
    limits.expect(limits.weight_of(value))
    text: str = _trace(str(value), (value,))
    return text


def _written(value: object) -> str:
    return limits.written(_output(value))


def _strings(value: object) -> Iterator[str]:
    """Yield all strings within lists, tuples, mappings and their views, also keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple | Set | ValuesView):
        for item in value:
            yield from _strings(item)


def _trace(result: Any, sources: Iterable[object]) -> Any:
    """Return a function's result, as user text where it is a new string and a source has user text."""
    is_list = type(result) in (list, tuple)
    if not is_list and (not isinstance(result, str) or isinstance(result, Traced)):
        return result
    strings = [text for source in sources for text in _strings(source)]
    if not any(isinstance(text, Traced) for text in strings):
        return result
    known, author = set(map(id, strings)), _author_of(strings)

    def traced(item: Any) -> Any:
        is_new = isinstance(item, str) and not isinstance(item, Traced) and id(item) not in known
        return Traced(item, author=author) if is_new else item

    return type(result)(map(traced, result)) if is_list else traced(result)


def _author_of(strings: Iterable[str]) -> int:
    """Return the author of a string that was computed from these: of the one text in them, or some user."""
    authors = {author for text in strings for _, author in _runs(text)} - {TEMPLATE}
    author = authors.pop() if len(authors) == 1 else USER
    return min(author, USER)  # the string is not a picture


def _tracing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter so that its result is traced and limited."""
    own = hasattr(function, "jinja_pass_arg")  # the first argument is Jinja's own

    @functools.wraps(function)  # copies Jinja's pass_context mark, too
    def traced(*args: Any, **kwargs: Any) -> Any:
        limits.read(*args[own:], *kwargs.values())
        limits.expect_filter(name, args[own:], kwargs)
        return limits.made(_trace(function(*args, **kwargs), (*args, *kwargs.values())))

    return traced


def _counting(function: Any) -> Callable[..., Any]:
    """Wrap a test so that it counts."""
    own = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        limits.read(*args[own:], *kwargs.values())
        return function(*args, **kwargs)

    return counted


def _compared(value: Any) -> Any:
    limits.read(value)
    return value


class _Generation(Extension):
    """`{% generation %}` marks text of the model for training. Here it has no effect on its content."""

    tags = {"generation"}  # noqa: RUF012  # a set of the class, as in jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = MeteredCode
    concat = staticmethod(joined)
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    step = staticmethod(limits.step)
    made = staticmethod(limits.made)
    sliced = staticmethod(limits.sliced)
    compared = staticmethod(_compared)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, LoopControlExtension],
            finalize=_written,
        )
        for name in _UNLIMITED_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters.update(tojson=_tojson, format=_format_filter)
        self.filters = {name: _tracing(name, function) for name, function in self.filters.items()}
        self.filters.update(join=_join_filter, sum=_sum_filter)
        self.tests = {name: _counting(function) for name, function in self.tests.items()}
        self.globals.update(raise_exception=_refuse, strftime_now=_strftime_now, namespace=_namespace)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and getattr(function, "__name__", None) == "join" and len(args) == 1:
            return _join(owner, args[0])
        if isinstance(owner, str):
            limits.expect_method(owner, function.__name__, args, kwargs)
        limits.read(owner, *args, *kwargs.values())
        result = super().call(context, function, *args, **kwargs)
        if isinstance(function, Macro | LoopContext):  # template code, which was traced while it ran
            return result
        return limits.made(_trace(result, (owner if isinstance(owner, str) else None, *args, *kwargs.values())))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        limits.read(left, right)
        limits.expect_operation(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        return limits.made(_trace(result, (left, right)) if operator in ("%", "*") else result)

    def getitem(self, obj: Any, argument: Any) -> Any:
        limits.step()
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        limits.step()
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and not (
            attr in _UNLIMITED_METHODS and isinstance(obj, str | int)
        )

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @functools.wraps(wrapped)
        def limited(*args: Any, **kwargs: Any) -> str:
            limits.expect_format(value.__self__, args, kwargs)
            return wrapped(*args, **kwargs)

        return limited


@pass_environment
def _join_filter(
    environment: _Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    return _join(d, value if attribute is None else map(make_attrgetter(environment, attribute), value))


@pass_environment
def _sum_filter(
    environment: Environment, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0
) -> Any:
    """Add one by one: sums of lists are lists, each of which counts."""
    for value in iterable if attribute is None else map(make_attrgetter(environment, attribute), iterable):
        start = limits.made(start + value)
    return start


def _format_filter(value: str, *args: Any, **kwargs: Any) -> str:
    limits.expect_percent(str(value), args, kwargs)
    return do_format(value, *args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Serialize to JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise RefusalError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class _Namespace(Namespace):
    """Jinja's namespace without names such as `__class__`, which would make it look like another class's object.

    It does not show what it holds, which may change after a list that holds the namespace was weighed.
    """

    def __repr__(self) -> str:
        return "<Namespace>"

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not have an attribute {quoted(name)}")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    namespace = _Namespace()
    for name, value in dict(*args, **kwargs).items():
        namespace[name] = value
    return namespace


_ENVIRONMENT = _Environment()
