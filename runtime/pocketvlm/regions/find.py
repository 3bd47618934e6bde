"""The regions that an answer names."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from pocketvlm.messages import ImageTimings, Region
from pocketvlm.regions.frame import Frame
from pocketvlm.regions.notation import Notation

_PICTURE = re.compile(r"\b(?:image|picture|photo)[ _#-]{0,3}(\d{1,3})\b", re.IGNORECASE)


def find_regions(text: str, notation: Notation, images: Sequence[ImageTimings]) -> list[Region]:
    """Return the regions that `text` names in the pictures of its request, in the order of the text.

    A place belongs to the picture whose number, from 1, the model has written with it or last before it, as in "image
    2", and else to the last picture. What lies outside the picture is left out.
    """
    if not images:
        return []
    frames = [Frame.of(image) for image in images]
    named = [(match.start(), int(match[1])) for match in _PICTURE.finditer(text)] if len(images) > 1 else []
    starts = [start for start, _ in named]
    regions = []
    for place in notation.read(text):
        before = bisect_left(starts, place.span[1])
        number = place.picture or (named[before - 1][1] if before else len(images))
        index = number - 1 if 1 <= number <= len(images) else len(images) - 1
        frame = frames[index]
        pairs = frame.pairs(place.numbers, notation.scale, y_first=notation.y_first)
        if (outlines := frame.outline(place.kind, pairs)) is None:
            continue
        pixels, relative = outlines
        regions.append(
            Region(
                label=place.label,
                image=index,
                box=pixels.box,
                points=pixels.points,
                polygon=pixels.polygon,
                relative=relative,
                span=place.span,
                cut_off=frame.reaches_cut(pairs) or None,
            )
        )
    return regions
