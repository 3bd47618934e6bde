"""What commands ask the catalogue of models. Another package has it, and is found by an entry point."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pocketvlm.chat.load_options import LoadOptions
    from pocketvlm.plan.prediction import Planner

_GROUP = "pocketvlm.catalog"


class Catalog(Protocol):
    """The functions of the module that the entry point names."""

    def not_pulled(self, name: str) -> str | None:
        """Return why there is no model of this name here and how to get one; None where nothing is known about it."""

    def planner(
        self, name: str, options: LoadOptions, picture: tuple[int, int]
    ) -> AbstractContextManager[Planner] | None:
        """Return what plans for a model as `pull` makes it; None where the catalogue does not have it."""


def find_catalog() -> Catalog | None:
    """Return the catalogue, or None where none is installed."""
    for point in entry_points(group=_GROUP):
        catalog: Catalog = point.load()
        return catalog
    return None
