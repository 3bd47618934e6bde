"""Make a picture square by cropping, padding or stretching, with Pillow's bicubic filter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

from pocketvlm.errors import quoted
from pocketvlm.vision.family import RGB, View

Kind = Literal["crop", "pad", "stretch"]
_BICUBIC = Image.Resampling.BICUBIC
_MAX_EDGE = 8192  # pixels of an intermediate picture: a square of this size takes 200 MB


@dataclass(frozen=True)
class Letterbox:
    """How to make a picture `edge` x `edge` pixels.

    `crop` takes the middle square, `pad` adds bars of `colour`, `stretch` changes the proportions.
    """

    kind: Kind
    edge: int
    colour: tuple[int, int, int] = (0, 0, 0)

    def apply(self, image: RGB) -> Image.Image:
        picture = Image.fromarray(image)
        if self.kind == "crop":
            return self._cropped(picture)
        return (self._padded(picture) if self.kind == "pad" else picture).resize((self.edge, self.edge), _BICUBIC)

    def view(self, size: tuple[int, int]) -> View | None:
        """Return the part of a picture of this size that the square shows: the middle, or one with bars around it.

        None where that is the whole picture.
        """
        if self.kind == "stretch" or size[0] == size[1]:
            return None
        if self.kind == "crop":
            lengths = [int(self.edge * length / min(size)) for length in size]
            (x, width), (y, height) = (
                ((length - self.edge) // 2 * whole / length, self.edge * whole / length)
                for whole, length in zip(size, lengths, strict=True)
            )
            return x, y, width, height
        longest = max(size)
        return -((longest - size[0]) // 2), -((longest - size[1]) // 2), longest, longest

    def _cropped(self, picture: Image.Image) -> Image.Image:
        """Resize the shorter edge to `edge`, then cut out the middle."""
        width, height = (int(self.edge * length / min(picture.size)) for length in picture.size)
        left, top = (width - self.edge) // 2, (height - self.edge) // 2
        box = (left, top, left + self.edge, top + self.edge)
        if max(width, height) <= _MAX_EDGE:
            return picture.resize((width, height), _BICUBIC).crop(box)
        # Almost the same result without resizing the parts that are cut off, which may be thousands of times as long.
        x, y = picture.width / width, picture.height / height
        source_box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        return picture.resize((self.edge, self.edge), _BICUBIC, box=source_box)

    def _padded(self, picture: Image.Image) -> Image.Image:
        if max(picture.size) > _MAX_EDGE:
            picture.thumbnail((_MAX_EDGE, _MAX_EDGE), _BICUBIC)
        longest = max(picture.size)
        square = Image.new("RGB", (longest, longest), self.colour)
        square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
        return square


def read_letterbox(metadata: Mapping[str, object], edge: int) -> Letterbox:
    """Return the letterbox in an encoder's metadata. Bars have the mean colour.

    Files of other converters lack it; their models were trained on padded pictures. Raises ValueError for unknown
    kinds and wrong colours.
    """
    name = metadata.get("pocketvlm.image_fit", "pad")
    kind = next((known for known in get_args(Kind) if known == name), None)
    if kind is None:
        raise ValueError(f"pocketvlm.image_fit is {quoted(name)}, known: {', '.join(get_args(Kind))}")
    mean = metadata.get("clip.vision.image_mean")
    if not isinstance(mean, list | tuple) or len(mean) != 3 or not all(map(_is_finite, mean)):
        raise ValueError(f"clip.vision.image_mean is {quoted(mean)}, must be three numbers")
    red, green, blue = (int(min(255, max(0, 255 * x))) for x in mean)
    return Letterbox(kind, edge, (red, green, blue))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
