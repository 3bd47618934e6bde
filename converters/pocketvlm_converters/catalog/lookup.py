"""What the runtime's commands ask about models that were not pulled yet; an entry point names this module."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.files.locate import REPOSITORY
from pocketvlm.plan.prediction import Planner
from pocketvlm.system.suggestions import one_of, similar_names
from pocketvlm_converters.catalog.entry import Entry, entries, find_entry
from pocketvlm_converters.catalog.estimates import MetaPlanner, figures
from pocketvlm_converters.catalog.meta_bundle import model_of


def not_pulled(name: str) -> str | None:
    """Return why there is no model of this name here and how to get one; None where nothing is known about it."""
    if (entry := find_entry(name)) is not None:
        sizes = figures(entry)
        licence = "accept its licence on the hub, then get it" if entry.gated else "get it"
        space = f"{sizes.download / 1e9:.1f} GB to download, {sizes.bundle / 1e9:.1f} GB when converted"
        return f"was not pulled yet; {licence} with: pocketvlm pull {entry.id} ({space})"
    if similar := similar_names(name, [entry.id for entry in entries()]):
        return f"no model of this name was pulled; did you mean {one_of(similar)}? `pocketvlm models` lists all"
    if REPOSITORY.fullmatch(name):
        return f"no such bundle; if it is a model of the hub, get it with: pocketvlm pull {name}"
    return None


def planner(name: str, options: LoadOptions, picture: tuple[int, int]) -> AbstractContextManager[Planner] | None:
    """Return a planner for the model with its recommended types; None where the catalogue does not have it."""
    entry = find_entry(name)
    return _planner(entry, options, picture) if entry is not None else None


@contextmanager
def _planner(entry: Entry, options: LoadOptions, picture: tuple[int, int]) -> Iterator[Planner]:
    with tempfile.TemporaryDirectory(prefix="pocketvlm-") as folder:
        yield MetaPlanner(model_of(entry), entry.types, Path(folder), options, picture=picture)
