"""How conversions report their progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as the work goes on: `done` of `total`, in bytes or tensors, of the named step."""

    def __call__(self, step: str, done: int, total: int) -> None: ...


def silent(step: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""
