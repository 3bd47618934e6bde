"""A place as a model has written it, before its numbers mean pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["box", "points", "polygon"]
# What parsers accept as a number. Longer ones are not places, and limits keep every parser linear in its text.
NUMBER = r"-?\d{1,9}(?:\.\d{0,18})?"
GAP = r"\s{0,16}"


@dataclass(frozen=True)
class Place:
    """`numbers` are pairs in the order of the notation. `span` are the characters that name the place: [start, end).

    `picture` is the number of a picture that the model wrote with it, from 1.
    """

    kind: Kind
    numbers: tuple[float, ...]
    label: str
    span: tuple[int, int]
    picture: int | None = None
