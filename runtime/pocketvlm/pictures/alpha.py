"""Put transparent pictures on a ground on which what they show can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

_VISIBLE = 16  # the least alpha, of 255, that a viewer notices
_NEAR = 64  # levels; ink that differs less from the ground in every channel is lost on it
_VARIED = 16  # levels between the least and the greatest value of a channel


def flatten(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Return a picture with transparency as RGB, and a note if it does not lie on white.

    Some programs write an alpha channel that they do not use, with zeros in it. So where alpha hides (nearly) all of a
    picture whose hidden colours vary, it is ignored.
    """
    from PIL import Image

    rgba = image.convert("LA") if image.mode == "La" else image
    rgba = rgba if rgba.mode == "RGBA" else rgba.convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgba.convert("RGB"), None
    pixels = rgba.width * rgba.height
    shown = sum(alpha.histogram()[_VISIBLE:])
    if shown <= max(1, pixels // 1000) and _hidden_colours_vary(rgba, alpha):
        return rgba.convert("RGB"), "its alpha channel hides everything, so it was ignored"
    ground = _ground(rgba, alpha, shown, pixels) if shown else "white"
    rgb = Image.new("RGB", rgba.size, ground)
    rgb.paste(rgba, mask=alpha)
    note = None if ground == "white" else f"its transparent parts were laid on {ground}, as it is too light for white"
    return rgb, note


def _hidden_colours_vary(rgba: Image.Image, alpha: Image.Image) -> bool:
    hidden = alpha.point([255 * (level < _VISIBLE) for level in range(256)])
    for channel in range(3):
        counts = rgba.getchannel(channel).histogram(hidden)
        levels = [level for level in range(256) if counts[level]]
        if levels and levels[-1] - levels[0] >= _VARIED:
            return True
    return False


def _ground(rgba: Image.Image, alpha: Image.Image, shown: int, pixels: int) -> str:
    """Return white, unless ink is lost on it: nearly all ink, or much of it where most of the picture is empty."""
    from PIL import ImageChops

    empty = 1 - shown / pixels
    if empty < 0.02:
        return "white"
    visible = alpha.point([255 * (level >= _VISIBLE) for level in range(256)])
    lowest = highest = rgba.getchannel(0)
    for channel in (rgba.getchannel(1), rgba.getchannel(2)):
        lowest, highest = ImageChops.darker(lowest, channel), ImageChops.lighter(highest, channel)
    light = sum(lowest.histogram(visible)[255 - _NEAR :]) / shown
    if light < (0.25 if empty >= 0.5 else 0.95):
        return "white"
    dark = sum(highest.histogram(visible)[: _NEAR + 1])
    above = lowest.point([255 * (level >= 128 - _NEAR) for level in range(256)])
    below = highest.point([255 * (level <= 128 + _NEAR) for level in range(256)])
    grey = ImageChops.darker(above, below).histogram(visible)[255]
    return "black" if dark <= grey else "grey"
