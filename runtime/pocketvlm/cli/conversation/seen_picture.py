"""A picture as the model sees it: in the size, and with the crop or bars, that its family gives it."""

from __future__ import annotations

from typing import Any

from PIL import Image

from pocketvlm.engine.interface import EngineInfo
from pocketvlm.errors import ImageError
from pocketvlm.pictures.images import Picture
from pocketvlm.vision import families
from pocketvlm.vision.grid import resized


def seen_picture(picture: Picture, info: EngineInfo, detail: Any, max_tokens: int | None) -> Image.Image:
    """Return the picture as it is cut into tiles; unchanged where the family is not known, or refuses it."""
    image = Image.fromarray(picture.pixels)
    known = families.find(dict(info.picture_metadata))
    if known is None:
        return image
    family = known[1]
    try:
        plan = family.plan(picture.size, detail, max_tokens)
    except ImageError:  # the question will say so
        return image
    if plan.tiles == 1:
        return Image.fromarray(family.tiles(picture.pixels, plan)[0])
    return resized(image, plan.used, Image.Resampling.BICUBIC)
