"""What a vision family states about pictures: how they are resized, which tiles are cut, which tokens surround them.

A family does not decide which encoder is used: libmtmd and onnxruntime get the same tiles, and the engine lays out the
embeddings as the plan says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import ImageError, RequestError
from pocketvlm.files.gguf_header import GGUFHeader
from pocketvlm.messages import Detail
from pocketvlm.vision.encoder_tensors import EncoderTensors

RGB = npt.NDArray[np.uint8]  # [height, width, 3]
View = tuple[float, float, float, float]  # (x, y, width, height) in pixels of a picture; may reach beyond it


@dataclass(frozen=True)
class TileSpan:
    """The place of one tile's embeddings in the prompt. `grid` is (rows, columns) of its tokens.

    `between` is a control token whose embedding the encoder itself puts between two rows; "": it puts none there.
    """

    index: int
    grid: tuple[int, int]
    between: str = ""

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] + len(self.control)

    @property
    def control(self) -> dict[int, str]:
        """The control tokens among the embeddings, by row."""
        rows, cols = self.grid
        return {row * (cols + 1) - 1: self.between for row in range(1, rows)} if self.between else {}


@dataclass(frozen=True)
class MosaicSpan:
    """A run of embeddings from several tiles. `order` holds indices into the concatenated rows of all `tiles`.

    Rows may be left out or repeated. A tile belongs to one mosaic only. Positions are those of text.

    With `weights`, an embedding is the weighted sum of the same number of rows: of the first in `order`, and so on.
    """

    tiles: tuple[TileSpan, ...]
    order: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.weights) or len(self.order)


@dataclass(frozen=True)
class PicturePlan:
    """How the model will see one picture; made from its size alone, before any pixel work.

    `layout` holds control text, tile spans and mosaics in prompt order. In the text, only `control_tokens` are parsed;
    the rest is tokenized together with the text around it.

    `resizes` are the steps of the family's reference; tiles are cut from the last one. With a `canvas`, the last one is
    centred on a picture of that size, and tiles are cut from there. All sizes are (width, height) in pixels.

    `cut` is the part of the picture that the last size shows, where that is another one than the whole.
    """

    original: tuple[int, int]
    resizes: tuple[tuple[int, int], ...]
    layout: tuple[str | TileSpan | MosaicSpan, ...]
    canvas: tuple[int, int] | None = None
    cut: View | None = None

    @property
    def used(self) -> tuple[int, int]:
        return self.resizes[-1]

    @property
    def view(self) -> View | None:
        """The part of the picture that the model sees; larger than the picture where it is padded, None: the whole."""
        if self.canvas is None or self.canvas == self.used:
            return self.cut
        sides = zip(self.original, self.used, self.canvas, strict=True)
        (x, width), (y, height) = (
            (-((outer - inner) // 2) * length / inner, outer * length / inner) for length, inner, outer in sides
        )
        return x, y, width, height

    @property
    def tiles(self) -> int:
        return sum(len(piece.tiles) if isinstance(piece, MosaicSpan) else 1 for piece in self._spans)

    @property
    def tokens(self) -> int:
        """The number of embeddings. The control text around them is not included."""
        return sum(piece.tokens for piece in self._spans)

    @property
    def _spans(self) -> list[TileSpan | MosaicSpan]:
        return [piece for piece in self.layout if not isinstance(piece, str)]

    @property
    def shrunk(self) -> bool:
        """Whether the model sees fewer pixels than the picture has, on either axis."""
        return self.used[0] < self.original[0] or self.used[1] < self.original[1]


class Family(Protocol):
    """A vision family; each has a module `vision/families/<name>.py`."""

    non_causal: bool  # the decoder attends both ways within a picture
    image_token: str  # what the family's chat templates write for a picture

    def control_tokens(self) -> tuple[str, ...]:
        """Return the texts of the layout that must be single tokens of the vocabulary of a matching model."""
        ...

    @property
    def tile_tokens(self) -> int:
        """The number of embeddings of the largest tile that `plan` can return."""
        ...

    def plan(self, size: tuple[int, int], detail: Detail, max_tokens: int | None) -> PicturePlan:
        """Return how to show a picture of `size` with at most `max_tokens` embeddings, if the model can.

        Raises ImageError where the family's reference refuses a picture of this size.
        """
        ...

    def tiles(self, image: RGB, plan: PicturePlan) -> Sequence[RGB]:
        """Return the tiles in the order of the plan's spans, uint8 [height, width, 3] each. Sizes may differ."""
        ...


def token_limit(*limits: int | None) -> int | None:
    """Return the lowest of the limits that there are."""
    return min((limit for limit in limits if limit is not None), default=None)


def plan_picture(
    family: Family,
    size: tuple[int, int],
    detail: Detail,
    max_tokens: int | None,
    param: str,
    limit_param: str | None = None,
) -> PicturePlan:
    """Return the family's plan. Raises ImageError, and RequestError where the model needs more than `max_tokens`.

    `param` is what errors name; `limit_param` is that of the limit, if the request has it elsewhere.
    """
    try:
        plan = family.plan(size, detail, max_tokens)
    except ImageError as error:
        raise type(error)(error.message, param) from None
    if max_tokens is not None and plan.tokens > max_tokens:
        message = f"max_image_tokens is {max_tokens}; this model needs {plan.tokens} for a picture"
        raise RequestError(message, limit_param or param)
    return plan


@dataclass(frozen=True)
class RowEnd:
    """An embedding in a projector's file that the runtime must put in place, because libmtmd does not.

    `tensors` are the names that it has in files, ours first. It stands after every row of a tile but the last; a row
    has cells of `cell` pixels. With `cell` None, it stands once, after the whole tile.
    """

    tensors: tuple[str, ...]
    cell: int | None = None


@runtime_checkable
class HasRowEnd(Protocol):
    """A family with a row end."""

    @property
    def row_end(self) -> RowEnd: ...


@runtime_checkable
class SeesSeveral(Protocol):
    """A family that sees a picture otherwise if a prompt has several: as `among_others` does."""

    @property
    def among_others(self) -> Family: ...


def family_for(family: Family, *, alone: bool) -> Family:
    """Return the family as it sees a picture that is `alone` in its prompt, or not."""
    return family if alone or not isinstance(family, SeesSeveral) else family.among_others


class FamilyModule(Protocol):
    """What the module of a family offers: recognise an mmproj by its metadata, read it, and check it.

    `DECODERS` are the architectures of its language models, as general.architecture names them, for which
    `check_known_decoder` holds.
    """

    DECODERS: tuple[str, ...]

    def matches(self, metadata: dict[str, Any]) -> bool:
        """Return whether the metadata are those of this family's projectors."""
        ...

    def from_metadata(self, metadata: dict[str, Any]) -> Family:
        """Return the family. Raises KeyError for a missing key, ValueError for a value that makes no sense."""
        ...

    def tensors(self, header: GGUFHeader) -> EncoderTensors:
        """Return the tensors that an mmproj must have. Raises ModelFormatError for sizes that no encoder has."""
        ...
