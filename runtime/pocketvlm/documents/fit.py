"""How many pixels a page gets: as many as the model will see, so that it is drawn once and not shrunk afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable

from pocketvlm.errors import ImageError
from pocketvlm.messages import Detail
from pocketvlm.pictures.images import MAX_PIXELS
from pocketvlm.pictures.opened import MAX_SIDE
from pocketvlm.vision.family import Family, PicturePlan

Size = tuple[int, int]
# From (width, height) of an upright page in points, 1/72 inch, to those of its picture in pixels.
Fit = Callable[[tuple[float, float]], Size]
POINTS = 72  # to an inch
DPI = {"low": 150, "auto": 150, "high": 300}  # by detail: what a scanner is set to for text, and for small print


def printed_size(points: tuple[float, float], dpi: int = DPI["auto"], max_pixels: int = MAX_PIXELS) -> Size:
    """Return the size of a page at a resolution, or less if it had more than `max_pixels`."""
    scale = dpi / POINTS
    scale = min(scale, math.sqrt(max_pixels / (points[0] * points[1])), MAX_SIDE / max(points))
    return max(1, math.floor(points[0] * scale)), max(1, math.floor(points[1] * scale))


def fit_for(family: Family | None, detail: Detail, max_tokens: int | None, max_pixels: int = MAX_PIXELS) -> Fit:
    """Return how large to draw a page for a model; with no family, at a resolution.

    A family resizes pictures, some of them out of proportion, and cuts them. A page that is drawn at the size that its
    plan ends with is not resized again, if the plan for that size is the same. That is tried here.
    """

    def fit(points: tuple[float, float]) -> Size:
        printed = printed_size(points, DPI[detail], max_pixels)
        if family is None:
            return printed
        try:
            plan = family.plan(printed, detail, max_tokens)
            for size in (plan.used, _covering(points, plan.used)):
                if size[0] * size[1] <= max_pixels and _is_same(family.plan(size, detail, max_tokens), plan):
                    return size
        except ImageError:  # the family refuses a picture of this shape, and will say so
            pass
        return printed

    return fit


def resolution(points: tuple[float, float], size: Size) -> float:
    """Return the dots per inch of a page of some points at a size in pixels, on the coarser axis."""
    return min(size[0] / points[0], size[1] / points[1]) * POINTS


def _covering(points: tuple[float, float], used: Size) -> Size:
    """Return the smallest size in the proportions of the page that is at least `used`."""
    scale = max(used[0] / points[0], used[1] / points[1])
    return max(used[0], round(points[0] * scale)), max(used[1], round(points[1] * scale))


def _is_same(plan: PicturePlan, other: PicturePlan) -> bool:
    return plan.used == other.used and plan.canvas == other.canvas and plan.layout == other.layout
