"""From the numbers of a notation to pixels of the upright picture, whatever the model saw of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pocketvlm.messages import Box, ImageTimings, Outline, Point
from pocketvlm.regions.place import Kind

_PIXEL_DIGITS, _SHARE_DIGITS = 4, 7  # decimals: far below what a model can mean

Pair = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """What a model saw of a picture.

    `size` is the picture's own and `seen` the one that the model saw, (width, height) in pixels. `view` is the part of
    the picture that it saw, (x, y, width, height) in pixels of the picture: less than the whole where the edges were
    cut off, more where it was padded.
    """

    size: tuple[int, int]
    seen: tuple[int, int]
    view: tuple[float, float, float, float]

    @classmethod
    def of(cls, image: ImageTimings) -> Frame:
        """Return the frame of a picture by what is reported about it."""
        width, height = image.original_size
        return cls(image.original_size, image.used_size, image.view or (0, 0, width, height))

    @property
    def is_cut(self) -> bool:
        """Whether the model did not see all of the picture."""
        return any(self._is_cut(axis, side) for axis in (0, 1) for side in (0, 1))

    def pairs(self, numbers: Sequence[float], scale: float | None, *, y_first: bool) -> list[Pair]:
        """Return pairs of numbers as points in pixels of the picture. Those outside of what was seen move to its edge.

        Numbers of 0 to `scale` stand for the whole view; with None they are pixels of what the model saw.
        """
        pairs = zip(numbers[0::2], numbers[1::2], strict=True)
        return [
            (self._carried(y if y_first else x, 0, scale), self._carried(x if y_first else y, 1, scale))
            for x, y in pairs
        ]

    def outline(self, kind: Kind, pairs: Sequence[Pair]) -> tuple[Outline, Outline] | None:
        """Return a place in pixels, and in shares of the picture; None where nothing of it lies in the picture."""
        width, height = self.size
        if kind == "points":
            inside = [(x, y) for x, y in pairs if 0 <= x <= width and 0 <= y <= height]
            return (_points(inside, (1, 1)), _points(inside, self.size)) if inside else None
        within = [(min(max(x, 0), width), min(max(y, 0), height)) for x, y in pairs]
        box, relative = _box(within, (1, 1), self.size), _box(within, self.size, (1, 1))
        if box is None or relative is None:
            return None
        if kind == "box":
            return Outline(box=box), Outline(box=relative)
        return (
            Outline(box=box, polygon=_points(within, (1, 1)).points),
            Outline(box=relative, polygon=_points(within, self.size).points),
        )

    def reaches_cut(self, pairs: Sequence[Pair]) -> bool:
        """Return whether a place reaches an edge of the view beyond which the picture goes on, to a pixel seen."""
        for axis in (0, 1):
            start, length = self.view[axis], self.view[axis + 2]
            pixel = length / self.seen[axis]
            values = [pair[axis] for pair in pairs]
            if self._is_cut(axis, 0) and min(values) < start + pixel:
                return True
            if self._is_cut(axis, 1) and max(values) > start + length - pixel:
                return True
        return False

    def _is_cut(self, axis: int, side: int) -> bool:
        start, length = self.view[axis], self.view[axis + 2]
        return start > 0 if side == 0 else start + length < self.size[axis]

    def _carried(self, number: float, axis: int, scale: float | None) -> float:
        share = min(max(number / (self.seen[axis] if scale is None else scale), 0.0), 1.0)
        return self.view[axis] + share * self.view[axis + 2]


def _points(pairs: Sequence[Pair], divisors: tuple[int, int]) -> Outline:
    digits = _PIXEL_DIGITS if divisors == (1, 1) else _SHARE_DIGITS
    points = [Point(x=round(x / divisors[0], digits), y=round(y / divisors[1], digits)) for x, y in pairs]
    return Outline(points=points)


def _box(pairs: Sequence[Pair], divisors: tuple[int, int], most: tuple[int, int]) -> Box | None:
    """Return the box around points within (0, 0) and `most`, None where it is empty."""
    digits = _PIXEL_DIGITS if divisors == (1, 1) else _SHARE_DIGITS
    sides = []
    for axis in (0, 1):
        values = [pair[axis] / divisors[axis] for pair in pairs]
        start = round(min(values), digits)
        length = round(round(max(values), digits) - start, digits)
        while start + length > most[axis]:  # by an error of addition
            length = round(length - 10**-digits, digits)
        sides.append((start, length))
    (x, width), (y, height) = sides
    return Box(x=x, y=y, width=width, height=height) if width > 0 and height > 0 else None
