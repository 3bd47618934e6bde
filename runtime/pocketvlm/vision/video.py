"""What a family states about videos: which frames go together, and which texts and positions say when they were shown.

Only families that were trained on videos state it. For others a video is a row of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from pocketvlm.messages import Detail
from pocketvlm.vision.family import RGB, TileSpan
from pocketvlm.vision.grid import Size, resized


@dataclass(frozen=True)
class Frames:
    """Frames of `size`, (width, height), at `times` in seconds from the beginning of a video that lasts `seconds`."""

    size: Size
    times: Sequence[float]
    seconds: float


@dataclass(frozen=True)
class VideoPlan:
    """How the model will see a video; made from the size and the times of its frames, before any pixel work.

    `layout` holds control text and tile spans in prompt order. In the text, only `control_tokens` of the family are
    parsed. A tile shows `frames` frames that follow each other; the last frame is repeated where some are missing.

    `resizes` are the steps of the family's reference for one frame, (width, height) in pixels.

    `steps` are the positions in time of all tiles from the first, which is 0; each is above the one before it. With
    them, rows and columns of all tiles count from the same position, and nothing stands between tiles. Without, tiles
    have the positions of pictures.
    """

    original: Size
    resizes: tuple[Size, ...]
    layout: tuple[str | TileSpan, ...]
    frames: int = 1
    steps: tuple[int, ...] = ()

    @property
    def used(self) -> Size:
        return self.resizes[-1]

    @property
    def shrunk(self) -> bool:
        """Whether the model sees fewer pixels than a frame has, on either axis."""
        return self.used[0] < self.original[0] or self.used[1] < self.original[1]

    @property
    def tile_tokens(self) -> int:
        """The number of embeddings of a tile."""
        return next(piece.tokens for piece in self.layout if isinstance(piece, TileSpan))

    def frames_of(self, tile: int, count: int) -> tuple[int, ...]:
        """Return the numbers of the frames that a tile shows, of `count`."""
        return tuple(min(tile * self.frames + number, count - 1) for number in range(self.frames))


class Video(Protocol):
    """How a family shows videos. `token` is what its chat templates write for one.

    `frames` frames become one tile. `needs_template`: the chat template writes tokens around `token`, so videos cannot
    be shown with a template that does not know them.
    """

    token: ClassVar[str]
    frames: ClassVar[int]
    needs_template: ClassVar[bool]

    def plan(self, frames: Frames, detail: Detail, max_tokens: int | None) -> VideoPlan:
        """Return how to show the frames. A tile has at most `max_tokens` embeddings, if the model can.

        Raises ImageError where the family's reference refuses frames of this size.
        """
        ...

    def frame(self, image: RGB, plan: VideoPlan) -> RGB:
        """Return a frame as the encoder gets it, uint8 [height, width, 3] of the plan's size."""
        ...


@runtime_checkable
class HasVideo(Protocol):
    """A family that may know videos: a checkpoint of it was trained on them, or not."""

    @property
    def video(self) -> Video | None: ...


def video_of(family: object) -> Video | None:
    """Return how a family shows videos; None where it was not trained on them."""
    return family.video if isinstance(family, HasVideo) else None


def resized_frame(image: RGB, plan: VideoPlan, resampling: Image.Resampling) -> RGB:
    """Return a frame after the plan's steps."""
    picture = Image.fromarray(image)
    for size in plan.resizes:
        picture = resized(picture, size, resampling)
    return np.asarray(picture)


def clock(seconds: float) -> str:
    """Return a time as minutes and seconds, such as 01:05, as several processors write it."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"
