"""Options that are written once: a dataclass whose fields carry their help text, limits and command-line flags.

    threads: Annotated[int | None, Option("Threads; by default the physical cores.", least=1, most=512)] = None

The dataclass checks its values with `check_options`; `pocketvlm.cli.command_options` makes command-line options of its
fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pocketvlm.errors import RequestError, quoted


@dataclass(frozen=True)
class Unit:
    """A size on the command line, in units called `name`, is `factor` times as large in Python, in `base` units."""

    name: str
    factor: int
    base: str


MEBIBYTES = Unit("MiB", 1 << 20, "bytes")
MEGAPIXELS = Unit("megapixels", 1_000_000, "pixels")


@dataclass(frozen=True)
class Option:
    """`help` is a sentence for `--help`, where {unit} stands for the unit of the value.

    `flags` are the names on the command line; by default the field's name. `least`, `most` (both included) and `above`
    (not included) limit the value in Python.
    """

    help: str
    flags: tuple[str, ...] = ()
    unit: Unit | None = None
    least: int | None = None
    most: int | None = None
    above: float | None = None
    envvar: str | None = None


@dataclass(frozen=True)
class OptionField:
    """A field of an options dataclass: its `type` without None, whether it is `optional`, its `default`."""

    name: str
    type: Any
    optional: bool
    default: Any
    option: Option

    @property
    def flags(self) -> tuple[str, ...]:
        return self.option.flags or (f"--{self.name.replace('_', '-')}",)

    def help(self, *, command_line: bool) -> str:
        unit = self.option.unit
        return self.option.help.format(unit=(unit.name if command_line else unit.base) if unit else "")

    def problem(self, value: Any) -> str | None:
        """Say what is wrong with a value and what is expected; None if it is valid."""
        option = self.option
        if value is None and self.optional:
            return None
        if self.type is int and type(value) is not int:
            return "must be a whole number"
        if self.type is float and type(value) not in (int, float):
            return "must be a number"
        if get_origin(self.type) is Literal and value not in get_args(self.type):
            *others, last = get_args(self.type)
            return f"invalid value {quoted(value)}; use {', '.join(others)} or {last}"
        # NaN is outside all limits.
        if option.above is not None and not value > option.above:
            return f"must be more than {option.above:g}"
        if option.least is not None and option.most is not None and not option.least <= value <= option.most:
            return f"must be from {option.least:,} to {option.most:,}"
        if option.least is not None and not value >= option.least:
            return f"must be at least {option.least}"
        return None


def option_fields(options: type[Any]) -> Mapping[str, OptionField]:
    """Return the fields of a dataclass that are options, by name."""
    hints = get_type_hints(options, include_extras=True)
    described = {}
    for field in fields(options):
        metadata = getattr(hints[field.name], "__metadata__", ())
        option = next((extra for extra in metadata if isinstance(extra, Option)), None)
        if option is None:
            continue
        declared = hints[field.name].__origin__
        optional = NoneType in get_args(declared)
        types = [one for one in get_args(declared) if one is not NoneType] if optional else [declared]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        described[field.name] = OptionField(
            field.name, types[0] if len(types) == 1 else declared, optional, default, option
        )
    return described


def check_options(options: object) -> None:
    """Raise RequestError, which names the field, for the first value that is not valid."""
    for field in option_fields(type(options)).values():
        if problem := field.problem(getattr(options, field.name)):
            raise RequestError(problem, field.name)


def describe(options: type[Any]) -> str:
    """Return a list of the options for a docstring: name, default, help text."""
    lines = ["Fields:"]
    for field in option_fields(options).values():
        lines.append(f"    {field.name} = {field.default!r}: {field.help(command_line=False)}")
    return "\n".join(lines)
