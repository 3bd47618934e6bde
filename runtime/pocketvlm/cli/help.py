"""What `--help` prints: commands and options in panels, and one below the other where a terminal is narrow."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

from typer.core import TyperCommand

from pocketvlm.system.option_names import use_flags

ANSWERS, PICTURES, ENGINE = "Answers", "Pictures and documents", "Model and engine"
# The commands in the order of use, by panel.
COMMANDS = {
    "Ask about pictures": ("chat", "app", "locate", "read", "decide", "batch", "serve"),
    "Get models": ("models", "pull", "remove", "plan"),
    "Make and check models": ("convert", "verify", "inspect"),
    "This machine": ("doctor", "bench"),
}
_PANELS = {None: 0, PICTURES: 1, ANSWERS: 2, ENGINE: 3}  # of options, in the order of --help; others follow
_NARROW = 60  # columns; a table of options has too little room for its texts in fewer
_VALUES = {"int": "NUMBER", "float": "NUMBER", "str": "TEXT", "path": "PATH", "integer": "NUMBER", "text": "TEXT"}


def panel_of(command: str) -> str | None:
    return next((panel for panel, names in COMMANDS.items() if command in names), None)


def in_order_of_use(names: list[str]) -> list[str]:
    known = [name for commands in COMMANDS.values() for name in commands]
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


class Command(TyperCommand):
    """A command whose values are named by plain words, and nothing where an option takes none."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        if self.help:  # typer breaks lines where the docstring does, in all paragraphs but the first
            self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in self.help.split("\n\n"))
        self.params.sort(key=lambda parameter: _PANELS.get(getattr(parameter, "rich_help_panel", None), len(_PANELS)))
        for parameter in self.params:
            name_value(parameter)

    def invoke(self, ctx: Any) -> Any:
        use_flags(_flags_of(self))
        return super().invoke(ctx)

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        name_value(option)
        return option

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if not print_narrow_help(self, ctx, formatter):
            super().format_help(ctx, formatter)


def _flags_of(command: Any) -> dict[str, str]:
    """Return the options of a command by their names in Python, those of the fields of LoadOptions included."""
    from pocketvlm.chat.load_options import LoadOptions
    from pocketvlm.system.options import option_fields

    flags = {
        parameter.name: next((flag for flag in parameter.opts if flag.startswith("--")), "")
        for parameter in command.params
    }
    own = {*flags.values()}
    flags |= {name: field.flags[0] for name, field in option_fields(LoadOptions).items() if field.flags[0] in own}
    return {name: flag for name, flag in flags.items() if flag}


def name_value(parameter: Any) -> None:
    """Set what stands for an argument or for the value of an option, unless it has a name already.

    typer's own names are those of Python's types.
    """
    if parameter is None:
        return
    if parameter.param_type_name == "argument":
        parameter.metavar = parameter.metavar or parameter.name.upper()
        parameter.display_type_rich = lambda **_: None  # typer shows it beside the name
    elif parameter.metavar is not None:
        return
    elif parameter.is_flag:
        parameter.metavar = ""
    elif hasattr(parameter, "type_descriptor"):
        annotation = parameter.type_descriptor.annotation
        kind = (*get_args(annotation), annotation)[0].__name__
        parameter.metavar = _VALUES.get(kind.lower(), kind.upper())
    else:  # typer on top of click
        parameter.metavar = _VALUES.get(str(parameter.type.name), str(parameter.type.name).upper())


def print_narrow_help(command: Any, ctx: Any, formatter: Any) -> bool:
    """Write the help for a narrow terminal to `formatter`; False where the terminal has room for a table."""
    if (width := shutil.get_terminal_size().columns) >= _NARROW:
        return False
    formatter.write("\n".join(_narrow_help(command, ctx, width)))
    return True


def _narrow_help(command: Any, ctx: Any, width: int) -> Iterator[str]:
    """Yield the lines of the help without a table: each name, and its text indented below."""
    yield from _wrapped(f"Usage: {ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}", width, "", "  ")
    yield ""
    for paragraph in (command.help or "").split("\n\n"):
        yield from _wrapped(paragraph, width, "", "")
        yield ""
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        is_argument = parameter.param_type_name == "argument"
        title = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
        if record := parameter.get_help_record(ctx):
            panels.setdefault(title, []).append((parameter.metavar, record[1]) if is_argument else record)
    for name in command.list_commands(ctx) if hasattr(command, "list_commands") else ():
        title = panel_of(name) or "Commands"
        panels.setdefault(title, []).append((name, command.get_command(ctx, name).get_short_help_str(width * 3)))
    for title, records in panels.items():
        yield from _wrapped(f"{title}:", width, "", "")
        for name, text in records:
            yield from _wrapped(name, width, "", "  ")
            yield from _wrapped(text, width, "  ", "  ")
        yield ""


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
