"""`pocketvlm remove`: delete pulled models."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pocketvlm.errors import ModelNotFoundError, RequestError
from pocketvlm.system.terminal import size_text


def remove(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Pulled models, as `pocketvlm models --local` lists them.")
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete pulled models from the disk."""
    from pocketvlm.files.pulled import find_pulled, remove_pulled

    if "iota" in names:
        raise ModelNotFoundError("comes with pocketvlm and is not removed", "iota")
    models = [find_pulled(name) for name in dict.fromkeys(names)]  # all, before anything is removed
    if not yes:
        if not sys.stdin.isatty():
            raise RequestError("is needed where there is no terminal to ask at", "--yes")
        sizes = ", ".join(f"{model.name} ({size_text(model.size)})" for model in models)
        if not typer.confirm(f"Remove {sizes}?"):
            typer.echo("nothing was removed", err=True)
            raise typer.Exit(1)
    for model in models:
        remove_pulled(model)
        typer.echo(f"removed {model.name}, {size_text(model.size)}")
