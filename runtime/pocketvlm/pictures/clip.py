"""Frames of a video that belong together."""

from __future__ import annotations

from dataclasses import dataclass

from pocketvlm.pictures.images import Picture


@dataclass(frozen=True)
class Clip:
    """`pictures` of a video that lasts `seconds`, at `times` in seconds from its beginning, in rising order."""

    pictures: tuple[Picture, ...]
    times: tuple[float, ...]
    seconds: float
