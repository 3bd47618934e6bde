"""The subcommands of `pocketvlm`, one file each. Other packages add theirs by an entry point.

A command is imported when it is called, or when all are listed.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from pocketvlm.cli import interrupted
from pocketvlm.cli.console import error_message
from pocketvlm.cli.help import in_order_of_use, name_value, panel_of, print_narrow_help
from pocketvlm.errors import PocketVLMError
from pocketvlm.system.terminal import echo

_QUIET = ("chat", "pull")  # print nothing if interrupted: chat just ends, pull prints how to continue


# Of this package: the module and function of each.
_OWN = {
    name: name
    for name in (
        "batch",
        "bench",
        "chat",
        "decide",
        "doctor",
        "inspect",
        "locate",
        "plan",
        "read",
        "remove",
        "serve",
    )
}
_OWN["app"] = "open_app"


@cache
def _of_others() -> dict[str, Any]:
    """Return the entry points of commands of other packages by their names."""
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="pocketvlm.commands")}


def _imported(name: str) -> Any:
    """Import a command and return it as typer's object."""
    from pocketvlm.cli.picture_arguments import PictureCommand

    own = _OWN.get(name)
    function = getattr(import_module(f"pocketvlm.cli.{name}"), own) if own else _of_others()[name].load()
    alone = typer.Typer(add_completion=False)
    alone.command(name, cls=PictureCommand, rich_help_panel=panel_of(name))(function)
    return typer.main.get_command(alone)


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # typer's
        return in_order_of_use([*{**self.commands, **_OWN, **_of_others()}])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            if cmd_name in _OWN or cmd_name in _of_others():
                self.commands[cmd_name] = _imported(cmd_name)
            else:  # typer looks for a similar name among these
                return self.import_all(ctx).get(cmd_name)
        return self.commands[cmd_name]

    def import_all(self, ctx: Any) -> dict[str, Any]:
        """Import every command, and return them by name."""
        return {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}

    def get_params(self, ctx: Any) -> Any:
        for parameter in (parameters := super().get_params(ctx)):
            name_value(parameter)
        return parameters

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if not print_narrow_help(self, ctx, formatter):
            super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, ImportError) as error:  # NativeLibraryError is one
            if not interrupted(error):
                raise
            if ctx.invoked_subcommand not in (None, *_QUIET):  # None while it is imported
                typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="pocketvlm",
    cls=_Commands,
    help="Image-text chat with quantized vision-language models on this machine, no network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from pocketvlm import __version__

        typer.echo(f"pocketvlm {__version__}")
        raise typer.Exit


def run() -> None:
    """Print expected errors as one line and exit with code 2."""
    try:
        app(standalone_mode=True)
    except PocketVLMError as error:
        echo(f"error: {error_message(error)}", "red", err=True)
        sys.exit(2)
