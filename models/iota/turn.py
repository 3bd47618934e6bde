"""One question about a picture and its answer."""

from __future__ import annotations

from dataclasses import dataclass

from .scenes import Shape


@dataclass(frozen=True)
class Turn:
    """One question and its answer. `pictures` are the indices of the scenes that this turn shows first."""

    kind: str
    question: str
    answer: str
    pictures: tuple[int, ...] = ()
    about: Shape | None = None  # what "it" means in a follow-up
