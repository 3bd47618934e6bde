"""The `pocketvlm` command: one file per sub-command; other packages add theirs by an entry point."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import entry_points

import typer

from pocketvlm.cli.batch import batch
from pocketvlm.cli.bench import bench
from pocketvlm.cli.chat import chat
from pocketvlm.cli.doctor import doctor
from pocketvlm.cli.inspect import inspect
from pocketvlm.cli.plan import plan
from pocketvlm.cli.serve import serve
from pocketvlm.errors import PocketVLMError

app = typer.Typer(
    name="pocketvlm",
    help="Image-text chat with quantized vision-language models on this machine, no network.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(chat)
app.command()(inspect)
app.command()(serve)
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


def _add_commands() -> None:
    """Import another package's command only where it is called or listed: converters would slow every chat down."""
    wanted = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    for point in sorted(entry_points(group="pocketvlm.commands"), key=lambda p: p.name):
        if wanted in (None, point.name):
            app.command(point.name)(point.load())


def main() -> None:
    """Exit codes: 0 done, 1 a check failed, 2 wrong use or input, 130 interrupted."""
    warnings.filterwarnings("ignore", module="PIL")  # a broken picture is our error, told once
    try:
        _add_commands()
        app(standalone_mode=True)
    except PocketVLMError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except MemoryError:
        typer.secho("error: out of memory; `pocketvlm plan` tells what a model needs", fg=typer.colors.RED, err=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader went away (pocketvlm ... | head); what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
