"""Convert a decoded picture of any mode to upright RGB, as a viewer shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pocketvlm.pictures.opened import exif_orientation

if TYPE_CHECKING:
    from PIL import Image


def upright_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Return the picture as RGB, without transparency. The note says what became of that, if not usual."""
    rgb, note = _to_rgb(image)
    return _upright(rgb, image), note


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    from pocketvlm.pictures.alpha import flatten

    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        return flatten(image)
    return image if image.mode == "RGB" else image.convert("RGB"), None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits, or float, to mode L; Pillow's own conversion would clip."""
    import numpy as np
    from PIL import Image

    from pocketvlm.pictures.depth import narrow_to_eight_bits, wide_to_eight_bits

    values = np.asarray(image)
    key = image.info.get("transparency")
    narrow = values.dtype.kind != "f" and values.max() <= 65535
    grey = Image.fromarray(
        narrow_to_eight_bits(values, 16) if narrow else wide_to_eight_bits(values, floats=image.mode == "F")
    )
    if isinstance(key, int):  # this shade of grey is transparent
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of the decoded `original`. Readers that apply it themselves have removed the tag."""
    from PIL.Image import Transpose

    transposes = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    transpose = transposes.get(exif_orientation(original.getexif))
    return rgb if transpose is None else rgb.transpose(transpose)
