"""What a vision family states about its pictures: the size it works at, the tiles it cuts, the tokens around them.

A family decides nothing about *who* encodes a tile: libmtmd and onnxruntime get the same tiles, and the engine
lays the embeddings out as the plan says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

RGB = npt.NDArray[np.uint8]  # [height, width, 3]
Detail = Literal["low", "high", "auto"]


@dataclass(frozen=True)
class TileSpan:
    """The place of one tile's embeddings in the prompt. `grid` is (rows, columns) of its tokens.

    `between` is a control token whose embedding the encoder itself puts between two rows; none where it is empty.
    """

    index: int
    grid: tuple[int, int]
    between: str = ""

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] + len(self.control)

    @property
    def control(self) -> dict[int, str]:
        """The control tokens among the embeddings, by place."""
        rows, cols = self.grid
        return {row * (cols + 1) - 1: self.between for row in range(1, rows)} if self.between else {}


@dataclass(frozen=True)
class MosaicSpan:
    """A run of embeddings out of several tiles: `order` numbers their rows, one tile's after the other's.

    A tile is part of one mosaic. Rows may be left out, or come more than once. Positions count as those of text.
    """

    tiles: tuple[TileSpan, ...]
    order: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.order)


@dataclass(frozen=True)
class PicturePlan:
    """How one picture will be seen; made from its size alone, before any pixel work.

    `layout` holds control text, tile spans and mosaics in prompt order. Only `control_tokens` are parsed in the text;
    the rest is tokenized together with the text beside it.
    Sizes are (width, height) in pixels.
    """

    original: tuple[int, int]
    resizes: tuple[tuple[int, int], ...]  # as the family's reference makes them; tiles are cut from the last
    layout: tuple[str | TileSpan | MosaicSpan, ...]
    canvas: tuple[int, int] | None = None  # with it, they are cut from this, the last size in its middle

    @property
    def used(self) -> tuple[int, int]:
        return self.resizes[-1]

    @property
    def tiles(self) -> int:
        return sum(len(piece.tiles) if isinstance(piece, MosaicSpan) else 1 for piece in self._spans)

    @property
    def tokens(self) -> int:
        """Embeddings only; the control text around them is counted with the prompt."""
        return sum(piece.tokens for piece in self._spans)

    @property
    def _spans(self) -> list[TileSpan | MosaicSpan]:
        return [piece for piece in self.layout if not isinstance(piece, str)]

    @property
    def shrunk(self) -> bool:
        """True where the model sees fewer pixels than the picture has, on either axis."""
        return self.used[0] < self.original[0] or self.used[1] < self.original[1]


class Family(Protocol):
    """One per `vision/families/<name>.py`."""

    non_causal: bool  # the decoder attends both ways within a picture
    image_token: str  # what the family's chat templates write for a picture

    def control_tokens(self) -> tuple[str, ...]:
        """Every token of the layout that a vocabulary must have as one: else the pair does not belong together."""
        ...

    @property
    def tile_tokens(self) -> int:
        """Embeddings of the largest tile that `plan` may ask for."""
        ...

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None) -> PicturePlan:
        """Raises ImageError where the family's reference refuses a picture of this size."""
        ...

    def tiles(self, image: RGB, plan: PicturePlan) -> Sequence[RGB]:
        """uint8 [height, width, 3] each, in the order of the plan's spans; not all of one size in every family."""
        ...


@dataclass(frozen=True)
class RowEnd:
    """An embedding in a projector's file that libmtmd does not put where it belongs.

    `tensors` are the names that files have for it, ours first. It stands behind every row of cells, of `cell` pixels
    each, but a tile's last; where `cell` is None once, behind the whole tile.
    """

    tensors: tuple[str, ...]
    cell: int | None = None


@runtime_checkable
class EndsRows(Protocol):
    """A family that has one."""

    @property
    def row_end(self) -> RowEnd: ...


class FamilyModule(Protocol):
    """What the module of a family offers: recognise an mmproj by its metadata, and read it."""

    def matches(self, metadata: dict[str, Any]) -> bool: ...

    def from_metadata(self, metadata: dict[str, Any]) -> Family:
        """Raises KeyError for a key that is missing, ValueError for a value that makes no sense."""
        ...
