"""`pocketvlm models --local`: the models that were pulled, with their size and last use."""

from __future__ import annotations

import json
from datetime import datetime

import typer

from pocketvlm.errors import RequestError
from pocketvlm.files.locate import models_folder
from pocketvlm.files.pulled import PulledModel, all_pulled, find_pulled
from pocketvlm.system.printable_console import PrintableConsole
from pocketvlm.system.terminal import size_text
from pocketvlm_converters.cli.tables import Column, fitted_table


def show_local(name: str | None, fits: str | None, *, as_json: bool) -> None:
    """Print all pulled models, or one. Raises ModelNotFoundError."""
    if fits is not None:
        raise RequestError("cannot be combined with --local; it lists the models of the catalogue", "--fits")
    models = all_pulled() if name is None else [find_pulled(name)]
    if as_json:
        typer.echo(json.dumps([_as_json(model) for model in models], indent=2, ensure_ascii=False))
        return
    if not models:
        typer.echo("no model was pulled; `pocketvlm models --fits free` lists what fits here, `pocketvlm pull` gets it")
        return
    columns = (
        Column("name", [model.name for model in models], 0, right=False),
        Column("size", [size_text(model.size) for model in models], 1),
        Column("last use", [_last_use(model) for model in models], 2, right=False),
    )
    console = PrintableConsole(highlight=False, markup=False)
    console.print(fitted_table(columns, console.width))
    notes = [f"together {size_text(sum(model.size for model in models))}, in {models_folder()}"]
    notes.append("`pocketvlm remove NAME` deletes one")
    for note in ("", *notes):
        console.print(note, style="dim", soft_wrap=True)


def _last_use(model: PulledModel) -> str:
    if not model.complete:
        return "download is not finished"
    if model.last_used is None:
        return "never"
    return datetime.fromtimestamp(model.last_used).strftime("%Y-%m-%d %H:%M")


def _as_json(model: PulledModel) -> dict[str, object]:
    used = None if model.last_used is None else datetime.fromtimestamp(model.last_used).astimezone().isoformat()
    return {
        "name": model.name,
        "path": str(model.path),
        "bytes": model.size,
        "last_used": used,
        "complete": model.complete,
    }
