"""`pocketvlm app`: the page in the browser, with a server of its own."""

from __future__ import annotations

import sys
import webbrowser
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.command_options import Fields, expand_options
from pocketvlm.cli.serve import SERVED_HELP, Offline, serve_models
from pocketvlm.cli.served_models import served_models
from pocketvlm.server.settings import Settings

if TYPE_CHECKING:
    from pocketvlm.server.models import Models

# A browser keeps chats for one address, port included: it should be the same every time.
_PORTS = (*range(8470, 8480), 0)


@expand_options
def open_app(
    models: Annotated[list[str] | None, typer.Option("-m", "--model", help=SERVED_HELP)] = None,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Offer every pulled model by its name, after those of --model.")
    ] = False,
    options: Annotated[
        LoadOptions,
        Fields("mmproj", "name", "context_size", "threads", "vision", "device", "max_pixels", "parallel", parallel=2),
    ],
    memory: Annotated[str | None, typer.Option(help="Memory budget, e.g. 4G or 512M.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, 0 picks a free one; by default the first free from 8470.")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, or print its address only.")
    ] = True,
    offline: Offline = False,
) -> None:
    """Open a page in the browser to chat about pictures. It is served on this machine, to this machine only."""
    serve_models(
        partial(served_models, models or (), every, memory=memory),
        options,
        Settings(port=port or 0),
        offline=offline,
        log_json=False,
        log_level="warning",
        ready=partial(_open, browser=browser),
        ports=_PORTS if port is None else (port,),
        load_first=False,
    )


def _open(models: Models, url: str, *, browser: bool) -> None:
    """Open the page while the model is being loaded: until the first question is typed, it may be."""
    models.preload()
    typer.echo(f"pocketvlm is at {url} (Ctrl-C stops it).")
    sys.stdout.flush()
    if browser and not webbrowser.open(url):
        typer.echo("No browser was found here; open the address in one.", err=True)
