"""Messages name an option as Python does, `max_pixels=`. The command line shows them with its own, `--max-pixels`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_KEYWORD = re.compile(r'(?<![^\s(])([a-z][a-z_]+)=(?:True\b|"([^"]*)"|(\d[\w.]*))?')
_flags: dict[str, str] = {}  # of the running command, by the names in Python; empty where none runs


def use_flags(flags: Mapping[str, str]) -> None:
    """Let messages show these options, by their names in Python."""
    _flags.clear()
    _flags.update(flags)


def flag_of(name: str) -> str:
    """Return the option of the running command that has this name in Python; the name itself where there is none."""
    return _flags.get(name, name)


def with_flags(message: str, more: Iterable[str] = ()) -> str:
    """Return a message in which options of the running command replace keywords: `imatrix="auto"`: --imatrix auto.

    `more` are options of another command that the message is about.
    """
    flags = {name: f"--{name.replace('_', '-')}" for name in more} | _flags

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2] or match[3]
        if name not in flags:
            return match[0]
        return f"{flags[name]} {value}" if value else flags[name]

    return _KEYWORD.sub(flag, message)
