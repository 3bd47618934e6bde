"""From the options of a command to the arguments of `VLM.load`."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.catalog import find_catalog
from pocketvlm.cli.typed_path import typed_path
from pocketvlm.errors import ModelNotFoundError

if TYPE_CHECKING:
    from pocketvlm.chat.vlm import VLM


def load(model: str | None, options: LoadOptions, *, memory: str | None = None) -> VLM:
    return load_chosen(model, options, memory=memory)[0]


def load_chosen(model: str | None, options: LoadOptions, *, memory: str | None = None) -> tuple[VLM, LoadOptions]:
    """Load a model, and return it with the options that keep it within `memory`."""
    from pocketvlm.chat.vlm import VLM

    target, chosen = load_arguments(model, options, memory=memory)
    return VLM.load(target, chosen), chosen


def find_bundle(name: str) -> Path:
    """Return the path of a bundle or of a pulled model.

    Raises ModelNotFoundError, which says how to pull the model where the catalogue has it.
    """
    from pocketvlm.files.locate import bundle_made_from, bundle_path

    try:
        return bundle_path(name)
    except ModelNotFoundError:
        catalog = find_catalog()
        reason = catalog.not_pulled(name) if catalog and not bundle_made_from(name) else None
        if reason is None:
            raise
        raise ModelNotFoundError(reason, name) from None


def load_arguments(
    model: str | None, options: LoadOptions, *, memory: str | None = None
) -> tuple[str | None, LoadOptions]:
    """Return target and options for `VLM.load`. `model` is what the command line names.

    Options are changed to stay within `memory`; the changes are printed on standard error. Raises MemoryBudgetError if
    the model cannot fit.
    """
    if model:
        model = typed_path(model)
    if options.mmproj:
        options = replace(options, mmproj=typed_path(str(options.mmproj)))
    target = model
    if model and (options.mmproj or model.lower().endswith(".gguf")):
        target, options = None, replace(options, model=model)
    elif model:
        find_bundle(model)
    if memory is None:
        return target, options
    from pocketvlm.plan.budget import keep_within, read_size

    chosen, prediction = keep_within(target, options, memory)
    values = [(field.name, getattr(options, field.name), getattr(chosen, field.name)) for field in fields(options)]
    changes = [f"{name.replace('_', ' ')} {value}" for name, before, value in values if value != before]
    usage = f"about {prediction.memory_bytes / 1e6:,.0f} MB of {read_size(memory) / 1e6:,.0f} MB"
    typer.echo(f"memory: {usage}{': ' if changes else ''}{', '.join(changes)}", err=True)
    return target, chosen
