"""Frames of a video at about their own size, two of which become a tile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from pocketvlm.messages import Detail
from pocketvlm.vision.dynamic_size import smart_resize
from pocketvlm.vision.family import RGB, TileSpan
from pocketvlm.vision.fixed_size import positive
from pocketvlm.vision.grid import Size, within
from pocketvlm.vision.video import VideoPlan, resized_frame

_AUTO_TOKENS, _LOW_TOKENS = 256, 64  # embeddings of a tile
_MAX_PIXELS = 2**31 - 1


@dataclass(frozen=True)
class DynamicVideo:
    """`factor` is patch_size * merge_size in pixels. The limits are those of transformers' video processor.

    `auto` stops at 256 embeddings a tile, a quarter of those of a picture; `high` is the reference's procedure.
    """

    factor: int
    min_pixels: int
    max_pixels: int
    token: ClassVar[str] = "<|video_pad|>"
    frames: ClassVar[int] = 2
    needs_template: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise ValueError(f"frames of {self.min_pixels} to {self.max_pixels} pixels")

    def frame(self, image: RGB, plan: VideoPlan) -> RGB:
        return resized_frame(image, plan, Image.Resampling.BICUBIC)

    def used_size(
        self, size: Size, detail: Detail, max_tokens: int | None, *, together: int = 1, edges_first: bool = False
    ) -> Size:
        """Return the size of a frame: the reference's, or the largest within the limits of `detail`.

        The limits of pixels are those of `together` frames.
        """
        limits_of_all = (self.min_pixels, self.max_pixels)
        used = smart_resize(size, self.factor, *limits_of_all, edges_first=edges_first, frames=together)
        ours = {"auto": _AUTO_TOKENS, "low": _LOW_TOKENS}.get(detail)
        limits = [limit for limit in (max_tokens, ours) if limit is not None]
        if limits and used[0] * used[1] > min(limits) * self.factor**2:
            cols, rows = within(size, min(limits))
            used = (cols * self.factor, rows * self.factor)
        return used

    def spans(self, used: Size, count: int) -> list[TileSpan]:
        """Return the tiles of `count` frames."""
        grid = (used[1] // self.factor, used[0] // self.factor)
        return [TileSpan(index, grid) for index in range(-(-count // self.frames))]


def read_limits(metadata: Mapping[str, Any], *, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the least and most pixels of frames; the defaults are for files without these keys.

    Raises ValueError for values that no checkpoint has.
    """
    least = positive(metadata, "pocketvlm.video_min_pixels", min_pixels, most=_MAX_PIXELS)
    return least, positive(metadata, "pocketvlm.video_max_pixels", max_pixels, most=_MAX_PIXELS)
