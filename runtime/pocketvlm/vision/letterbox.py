"""Ways to make a picture square, with Pillow's bicubic filter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

from pocketvlm.vision.family import RGB

Kind = Literal["crop", "pad", "stretch"]
_BICUBIC = Image.Resampling.BICUBIC
_LARGEST = 8192  # pixels along an edge of what is made on the way: a square of them takes 200 MB


@dataclass(frozen=True)
class Letterbox:
    """To `edge` x `edge` pixels: the middle square (`crop`), within bars of `colour` (`pad`), or out of proportion."""

    kind: Kind
    edge: int
    colour: tuple[int, int, int] = (0, 0, 0)

    def apply(self, image: RGB) -> Image.Image:
        picture = Image.fromarray(image)
        if self.kind == "crop":
            return self._cropped(picture)
        return (self._padded(picture) if self.kind == "pad" else picture).resize((self.edge, self.edge), _BICUBIC)

    def _cropped(self, picture: Image.Image) -> Image.Image:
        """The shorter edge becomes `edge`, then the middle is cut out."""
        width, height = (int(self.edge * along / min(picture.size)) for along in picture.size)
        left, top = (width - self.edge) // 2, (height - self.edge) // 2
        box = (left, top, left + self.edge, top + self.edge)
        if max(width, height) <= _LARGEST:
            return picture.resize((width, height), _BICUBIC).crop(box)
        # Almost the same, without the ends of a line that is thousands of times as long as high.
        x, y = picture.width / width, picture.height / height
        seen = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
        return picture.resize((self.edge, self.edge), _BICUBIC, box=seen)

    def _padded(self, picture: Image.Image) -> Image.Image:
        if max(picture.size) > _LARGEST:
            picture.thumbnail((_LARGEST, _LARGEST), _BICUBIC)
        longest = max(picture.size)
        square = Image.new("RGB", (longest, longest), self.colour)
        square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
        return square


def read_letterbox(metadata: Mapping[str, object], edge: int) -> Letterbox:
    """As the converter wrote it; files of other converters are for models that were trained on padded pictures.

    Bars have the mean colour. Raises ValueError for what nobody knows.
    """
    kind = metadata.get("pocketvlm.image_fit", "pad")
    found = next((known for known in get_args(Kind) if known == kind), None)
    if found is None:
        raise ValueError(f"pocketvlm.image_fit is {kind!r}, known: {', '.join(get_args(Kind))}")
    mean = metadata.get("clip.vision.image_mean")
    if not isinstance(mean, list | tuple) or len(mean) != 3 or not all(map(_is_finite, mean)):
        raise ValueError(f"clip.vision.image_mean is {mean!r}, must be three numbers")
    red, green, blue = (int(min(255, max(0, 255 * x))) for x in mean)
    return Letterbox(found, edge, (red, green, blue))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
