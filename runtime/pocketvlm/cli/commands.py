"""The subcommands of `pocketvlm`, one file each. Other packages add theirs by an entry point."""

from __future__ import annotations

import sys
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
from pocketvlm.cli.inspect import inspect
from pocketvlm.cli.plan import plan
from pocketvlm.cli.serve import serve
from pocketvlm.errors import PocketVLMError

_QUIET = ("chat", "pull")  # print nothing if interrupted: chat just ends, pull prints how to continue


class _Commands(TyperGroup):
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
app.command()(chat)
app.command()(inspect)
app.command()(serve)
app.command("app")(open_app)
app.command()(batch)
app.command()(plan)
app.command()(doctor)
app.command()(bench)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from pocketvlm import __version__

        typer.echo(f"pocketvlm {__version__}")
        raise typer.Exit


def add_commands() -> None:
    """Add the commands of other packages. Import one only if it is called or all are listed: converters are slow."""
    called = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    for point in sorted(entry_points(group="pocketvlm.commands"), key=lambda p: p.name):
        if called in (None, point.name):
            app.command(point.name)(point.load())


def run() -> None:
    """Print expected errors as one line and exit with code 2."""
    try:
        add_commands()
        app(standalone_mode=True)
    except PocketVLMError as error:
        typer.secho(f"error: {error_message(error)}", fg=typer.colors.RED, err=True)
        sys.exit(2)
