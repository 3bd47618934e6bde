"""How conversions report their progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called during the work: `done` of `total`, in bytes or items, of the step with this name."""

    def __call__(self, step: str, done: int, total: int) -> None: ...


def silent(step: str, done: int, total: int) -> None:
    """Ignore the progress."""
