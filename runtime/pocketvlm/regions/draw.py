"""Draw regions into a picture, with labels that can be read on any ground."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pocketvlm.messages import Region
from pocketvlm.vision.family import RGB

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Colours that differ in hue and lightness, so that neighbours differ to people who see fewer hues, too. After Okabe and
# Ito (2008).
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_DARK, _LIGHT = (0, 0, 0), (255, 255, 255)
_MAX_LABEL = 48  # characters
_SMALLEST, _LARGEST = 11, 48  # pixels of letters
_MAX_LABELS = 100  # that are moved away from each other
# Fonts of other scripts than Pillow's own font has, as systems name them.
_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "PingFang.ttc", "arial.ttf")


@dataclass(frozen=True)
class _Plate:
    """The ground of a label, [left, top, right, bottom) in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    def moved(self, x: int, y: int) -> _Plate:
        return _Plate(x, y, x + self.right - self.left, y + self.bottom - self.top)

    def overlaps(self, other: _Plate) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def draw_regions(picture: RGB, regions: Sequence[Region]) -> RGB:
    """Return a copy of a picture, uint8 [height, width, 3], with these regions of it and their labels.

    Each outline has a dark and a light edge, and each label a plate in the colour of its outline. Labels that would
    overlap are moved, and long ones cut. Regions with the same label have the same colour.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    size = min(max(_SMALLEST, round(max(image.size) / 45)), _LARGEST)
    line = max(2, round(max(image.size) / 400))
    colours: dict[str, tuple[int, int, int]] = {}
    for region in regions:
        colours.setdefault(region.label, _COLOURS[len(colours) % len(_COLOURS)])
    for region in regions:
        _outline(draw, region, colours[region.label], line)
    placed: list[_Plate] = []
    for region in regions[:_MAX_LABELS]:
        if label := _cut(region.label, _font(size, _script(region.label)), image.width - 2 * line):
            placed.append(_label(draw, region, label, colours[region.label], placed, line, size))
    return np.asarray(image)


def _outline(draw: ImageDraw.ImageDraw, region: Region, colour: tuple[int, int, int], line: int) -> None:
    strokes = (
        ((line + 4, _DARK), (line + 2, _LIGHT), (line, colour)) if line > 2 else ((line + 2, _DARK), (line, colour))
    )
    for point in region.points or ():
        for width, shade in strokes:
            radius = line + width
            draw.ellipse((point.x - radius, point.y - radius, point.x + radius, point.y + radius), shade)
    corners = [(point.x, point.y) for point in region.polygon or ()]
    if not corners and region.box is not None:
        box = region.box
        # The line lies within the picture, where the box reaches its edge.
        left, top = min(box.x, draw.im.size[0] - 1), min(box.y, draw.im.size[1] - 1)
        right, bottom = max(left, box.x + box.width - 1), max(top, box.y + box.height - 1)
        for width, shade in strokes:
            extra = (width - line) // 2
            draw.rectangle((left - extra, top - extra, right + extra, bottom + extra), outline=shade, width=width)
    elif corners:
        for width, shade in strokes:
            draw.line([*corners, corners[0]], shade, width, joint="curve")


def _label(
    draw: ImageDraw.ImageDraw,
    region: Region,
    label: str,
    colour: tuple[int, int, int],
    placed: Sequence[_Plate],
    line: int,
    size: int,
) -> _Plate:
    """Draw a label where it covers no other one, and return its plate."""
    font = _font(size, _script(label))
    pad = max(2, size // 5)
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    ascent = draw.textbbox((0, 0), "Ág", font=font)  # so that all plates have the same height
    top, bottom = min(top, ascent[1]), max(bottom, ascent[3])
    width, height = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    plate = _free_place(region, width, height, placed, draw.im.size, line)
    draw.rectangle((plate.left, plate.top, plate.right - 1, plate.bottom - 1), colour, _DARK)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = _DARK if brightness > 110 else _LIGHT
    draw.text((plate.left + pad - left, plate.top + pad - top), label, ink, font=font)
    return plate


def _free_place(
    region: Region, width: int, height: int, placed: Sequence[_Plate], size: tuple[int, int], line: int
) -> _Plate:
    """Return a place for a label at its region: above it, inside, below, beside, or as near as there is room."""
    x1, y1, x2, y2 = _bounds(region)
    edge = line // 2 + 1
    wishes = [
        (x1 - edge, y1 - edge - height),  # above
        (x1 - edge, y2 + edge),  # below
        (x1 + edge, y1 + edge),  # inside, at the top
        (x2 + edge - width, y1 - edge - height),
        (x2 + edge - width, y2 + edge),
        (x2 - edge - width, y2 - edge - height),  # inside, at the bottom
        (x2 + edge, y1),
        (x1 - edge - width, y1),
    ]
    most_left, most_top = max(0, size[0] - width), max(0, size[1] - height)
    plate = _Plate(0, 0, width, height)

    def free(x: float, y: float) -> _Plate | None:
        moved = plate.moved(round(x), round(y))
        within = 0 <= moved.left <= most_left and 0 <= moved.top <= most_top
        return moved if within and not any(moved.overlaps(other) for other in placed) else None

    for x, y in wishes:
        if (place := free(x, y)) is not None:
            return place
    start = plate.moved(round(min(max(x1, 0), most_left)), round(min(max(y1 - height, 0), most_top)))
    for step in range(1, size[1] // max(1, height) + 2):
        for column in (start.left, most_left, 0):
            for y in (start.top + step * height, start.top - step * height):
                if (place := free(column, min(max(y, 0), most_top))) is not None:
                    return place
    return start


def _bounds(region: Region) -> tuple[float, float, float, float]:
    if region.box is not None:
        box = region.box
        return box.x, box.y, box.x + box.width, box.y + box.height
    points = region.points or []
    across, down = [point.x for point in points], [point.y for point in points]
    return min(across, default=0), min(down, default=0), max(across, default=0), max(down, default=0)


def _cut(label: str, font: Font, width: int) -> str:
    """Return a label on one line, without what cannot be shown, and short enough for the picture."""
    shown = " ".join("".join(one for one in label if unicodedata.category(one)[0] != "C" or one.isspace()).split())
    text = shown if len(shown) <= _MAX_LABEL else f"{shown[: _MAX_LABEL - 1].rstrip()}…"
    while text and font.getlength(text) > width:
        text = f"{text.rstrip('…')[:-1].rstrip()}…" if len(text) > 2 else ""
    return text


def _script(label: str) -> str:
    """Return the letters of a label that not every font has, each once."""
    return "".join(sorted({one for one in label if ord(one) > 0x24F and not one.isspace() and one != "…"}))[:40]


@cache
def _font(size: int, letters: str = "") -> Font:
    """Return a font in this size, in pixels: Pillow's own, or one of the system that has these letters."""
    own = ImageFont.load_default(size)
    if not letters or _has(own, letters):
        return own
    for name in _FONTS:
        try:
            font = ImageFont.truetype(name, size)
        except OSError:
            continue
        if _has(font, letters):
            return font
    return own


def _has(font: Font, letters: str) -> bool:
    """Return whether a font draws all letters otherwise than one that no font has."""
    missing = bytes(font.getmask("\U0010ffff"))
    return all(bytes(font.getmask(letter)) != missing for letter in letters)
