"""SmolVLM, SmolVLM2 and Idefics3: square tiles in a grid, then the whole picture as one more tile.

The numbers are those of transformers' Idefics3 image processor (Pillow backend), the prompt layout that of its
processor. SmolVLM2 was also trained on videos: each frame is one tile after its time, as its SmolVLMVideoProcessor has
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from pocketvlm.files.gguf_header import GGUFHeader, projector_type
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import SCALE, EncoderTensors, read_sizes, separate, table
from pocketvlm.vision.family import RGB, PicturePlan, TileSpan
from pocketvlm.vision.fixed_size import positive, read_fixed_size
from pocketvlm.vision.grid import cut, resized
from pocketvlm.vision.video import Frames, VideoPlan, clock, resized_frame

_MAX_EDGE = 4096  # pixels; transformers: idefics3 MAX_IMAGE_SIZE
_MAX_TILES = 64  # along an edge; the vocabulary has a token for each place in the grid
_LANCZOS = Image.Resampling.LANCZOS
_EDGE = "<fake_token_around_image>"


@dataclass(frozen=True)
class SmolVLM:
    """`tile` is vision_config.image_size and `longest_edge` preprocessor_config's size.longest_edge, in pixels.

    `tokens_per_side` is image_size / patch_size / scale_factor. `video_edge` is video_size.longest_edge; 0 for a
    checkpoint that was not trained on videos.
    """

    tile: int
    longest_edge: int
    tokens_per_side: int
    non_causal: bool = False
    image_token: str = "<image>"
    video_edge: int = 0

    @property
    def video(self) -> SmolVLMVideo | None:
        return SmolVLMVideo(self.tile, self.video_edge, self.tokens_per_side) if self.video_edge else None

    @property
    def tile_tokens(self) -> int:
        return self.tokens_per_side**2

    def control_tokens(self) -> tuple[str, ...]:
        side = range(1, math.ceil(self.longest_edge / self.tile) + 1)
        return (_EDGE, "<global-img>", "\n", "\n\n", *(f"<row_{row}_col_{col}>" for row in side for col in side))

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None = None) -> PicturePlan:
        resizes = self._resizes(size, detail)
        fitted = self._fit(resizes[-1], max_tokens, wide=size[0] >= size[1])
        if fitted != resizes[-1]:
            resizes = (fitted,)
        return PicturePlan(original=size, resizes=resizes, layout=self._layout(fitted))

    def tiles(self, image: RGB, plan: PicturePlan) -> list[RGB]:
        """Return tiles, uint8 [tile, tile, 3] each: the grid row by row, then the whole picture."""
        picture = Image.fromarray(image)
        for step in plan.resizes:
            picture = resized(picture, step, _LANCZOS)
        crops = cut(picture, self.tile) if plan.tiles > 1 else []
        crops.append(np.asarray(resized(picture, (self.tile, self.tile), _LANCZOS)))
        return crops

    def _resizes(self, size: tuple[int, int], detail: Detail) -> tuple[tuple[int, int], ...]:
        """Return the sizes that the picture is resized to; the last one is a multiple of the tile on both axes."""
        if detail != "auto":  # the reference's procedures with and without splitting, which both set the longest edge
            enlarged = _to_longest_edge(size, self.longest_edge)
            return (enlarged, (self.tile, self.tile) if detail == "low" else self._to_grid(enlarged))
        longest = max(size)
        if longest > self.longest_edge:  # shrink to the model's grid, in proportion; never enlarge
            size = (
                max(1, size[0] * self.longest_edge // longest),
                max(1, size[1] * self.longest_edge // longest),
            )
        return ((self._ceil(size[0]), self._ceil(size[1])),)

    def _to_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Round the longer edge up to a multiple of the tile, the other one in proportion and then up, too."""
        width, height = size
        ratio = width / height
        if width >= height:
            width = self._ceil(width)
            return width, self._ceil(int(width / ratio))
        height = self._ceil(height)
        return self._ceil(int(height * ratio)), height

    def _ceil(self, pixels: int) -> int:
        return max(1, math.ceil(pixels / self.tile)) * self.tile

    def _fit(self, size: tuple[int, int], max_tokens: int | None, wide: bool) -> tuple[int, int]:
        """Reduce `size` to the grid that keeps most of both axes within `max_tokens`, or to one tile.

        One axis is reduced by at most twice as much as the other.
        """
        cols, rows = size[0] // self.tile, size[1] // self.tile
        grids = [(1, 1)]
        for c, r in product(range(1, cols + 1), range(1, rows + 1)):
            fits = max_tokens is None or (c * r + 1) * self.tile_tokens <= max_tokens
            if fits and 0.5 <= (c * rows) / (r * cols) <= 2:
                grids.append((c, r))
        best = max(grids, key=lambda g: (min(g[0] / cols, g[1] / rows), g[0] * g[1], g[0] if wide else g[1]))
        return best[0] * self.tile, best[1] * self.tile

    def _layout(self, used: tuple[int, int]) -> tuple[str | TileSpan, ...]:
        cols, rows = used[0] // self.tile, used[1] // self.tile
        grid = (self.tokens_per_side, self.tokens_per_side)
        if cols * rows == 1:
            return (f"{_EDGE}<global-img>", TileSpan(0, grid), _EDGE)
        layout: list[str | TileSpan] = []
        for row in range(rows):
            for col in range(cols):
                newline = "\n" if col == 0 and row > 0 else ""
                layout += [f"{newline}{_EDGE}<row_{row + 1}_col_{col + 1}>", TileSpan(row * cols + col, grid)]
        return (*layout, f"\n\n{_EDGE}<global-img>", TileSpan(rows * cols, grid), _EDGE)


@dataclass(frozen=True)
class SmolVLMVideo:
    """Frames are scaled to `longest_edge` and then to one tile. Texts and tiles are the same for every `detail`."""

    tile: int
    longest_edge: int
    tokens_per_side: int
    token: ClassVar[str] = "<video>"
    frames: ClassVar[int] = 1
    needs_template: ClassVar[bool] = False

    def plan(self, frames: Frames, detail: Detail, max_tokens: int | None) -> VideoPlan:  # noqa: ARG002
        count, length = _in_words(len(frames.times)), timedelta(seconds=int(frames.seconds))
        text = f"You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n"
        layout: list[str | TileSpan] = []
        for index, time in enumerate(frames.times):
            span = TileSpan(index, (self.tokens_per_side, self.tokens_per_side))
            layout += [f"{text}\nFrame from {clock(time)}:{_EDGE}<global-img>", span, _EDGE]
            text = ""
        resizes = (_to_longest_edge(frames.size, min(self.longest_edge, _MAX_EDGE)), (self.tile, self.tile))
        return VideoPlan(frames.size, resizes, (*layout, "\n\n"))

    def frame(self, image: RGB, plan: VideoPlan) -> RGB:
        return resized_frame(image, plan, _LANCZOS)


DECODERS = ("llama",)


def matches(metadata: dict[str, Any]) -> bool:
    return projector_type(metadata) == "idefics3"


def from_metadata(metadata: dict[str, Any]) -> SmolVLM:
    tile, side = read_fixed_size(metadata)
    longest_edge = positive(metadata, "clip.vision.preproc_image_size", most=_MAX_TILES * tile)
    video_edge = positive(metadata, key, most=_MAX_EDGE) if (key := "pocketvlm.video_edge") in metadata else 0
    return SmolVLM(tile, longest_edge, side, video_edge=video_edge)


def tensors(header: GGUFHeader) -> EncoderTensors:
    """Return the tensors of an mmproj. Raises ModelFormatError for sizes that no encoder has."""
    sizes = read_sizes(header, SCALE, least=2)
    return EncoderTensors(
        sizes,
        required={**table(sizes), "mm.model.fc.weight": (sizes.merged, sizes.output)},
        optional={"v.patch_embd.bias": (sizes.hidden,)},
        layer=separate(sizes),
    )


def _to_longest_edge(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Scale in proportion. The shorter edge is rounded down, then up to an even number, as in the reference."""
    width, height = size
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        width, height = int(longest * ratio), longest
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    ratio = width / height
    if width >= height and width > _MAX_EDGE:
        width, height = _MAX_EDGE, int(_MAX_EDGE / ratio)
    elif height > width and height > _MAX_EDGE:
        width, height = int(_MAX_EDGE * ratio), _MAX_EDGE
    return max(width, 1), max(height, 1)


_ONES = (
    *("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()),
    *("seventeen eighteen nineteen".split()),
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def _in_words(number: int) -> str:
    """Return a number below a million in English words, as the processor's num2words has it."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens = _TENS[number // 10 - 2]
        return f"{tens}-{_ONES[number % 10]}" if number % 10 else tens
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    whole, rest = divmod(number, unit)
    words = f"{_in_words(whole)} {name}"
    if not rest:
        return words
    return f"{words}{' and' if rest < 100 else ','} {_in_words(rest)}"
