"""The subcommands of `pocketvlm`, one file each. Other packages add theirs by an entry point."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from pocketvlm.cli import interrupted
from pocketvlm.cli.app import open_app
from pocketvlm.cli.batch import batch
from pocketvlm.cli.bench import bench
from pocketvlm.cli.chat import chat
from pocketvlm.cli.console import error_message
from pocketvlm.cli.doctor import doctor
from pocketvlm.cli.help import in_order_of_use, name_value, panel_of, print_narrow_help
from pocketvlm.cli.inspect import inspect
from pocketvlm.cli.picture_arguments import PictureCommand
from pocketvlm.cli.plan import plan
from pocketvlm.cli.read import read
from pocketvlm.cli.remove import remove
from pocketvlm.cli.serve import serve
from pocketvlm.errors import PocketVLMError
from pocketvlm.system.terminal import echo

_QUIET = ("chat", "pull")  # print nothing if interrupted: chat just ends, pull prints how to continue


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return in_order_of_use(super().list_commands(ctx))

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
            if ctx.invoked_subcommand not in _QUIET:
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


def _add(name: str, command: Callable[..., None]) -> None:
    app.command(name, cls=PictureCommand, rich_help_panel=panel_of(name))(command)


for own in (batch, bench, chat, doctor, inspect, plan, read, remove, serve):
    _add(own.__name__, own)
_add("app", open_app)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from pocketvlm import __version__

        typer.echo(f"pocketvlm {__version__}")
        raise typer.Exit


def add_commands() -> None:
    """Add the commands of other packages. Import one only if it is called or all are listed: converters are slow."""
    called = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    points = {point.name: point for point in entry_points(group="pocketvlm.commands")}
    known = {*points, *(command.name for command in app.registered_commands)}
    for name, point in points.items():
        if called == name or called not in known:  # for the list, and for what a wrong name is similar to
            _add(name, point.load())


def run() -> None:
    """Print expected errors as one line and exit with code 2."""
    try:
        add_commands()
        app(standalone_mode=True)
    except PocketVLMError as error:
        echo(f"error: {error_message(error)}", "red", err=True)
        sys.exit(2)
