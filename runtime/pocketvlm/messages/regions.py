"""Places in pictures that an answer names: boxes, points and polygons, in the picture's own pixels."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pocketvlm.messages.base import Omitted


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class Box(_Value):
    """A box with its upper left corner at (`x`, `y`). It is not empty."""

    x: float
    y: float
    width: float
    height: float


class Point(_Value):
    x: float
    y: float


class Outline(_Value):
    """One of a box, points, and a polygon by its corners. A polygon comes with the box around it."""

    box: Omitted[Box] = None
    points: Omitted[list[Point]] = None
    polygon: Omitted[list[Point]] = None


class Region(_Value):
    """A place in a picture.

    `image` is the number of the picture among those of the request, from 0, as in `timings.images`. `box`, `points` and
    `polygon` are in pixels of the upright picture and lie within it; `relative` has the same as shares of its width and
    height, 0 to 1. `span` says which characters of the content name the region: [start, end). `label` is "" where the
    answer gives none. `cut_off`: the region reaches an edge beyond which the model saw nothing of the picture, so it
    may go on there.
    """

    label: str
    image: int
    box: Omitted[Box] = None
    points: Omitted[list[Point]] = None
    polygon: Omitted[list[Point]] = None
    relative: Outline
    span: tuple[int, int]
    cut_off: Omitted[bool] = None
