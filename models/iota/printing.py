"""Printing on iota's pictures: fonts, rows of words, tables of numbers.

An area is (left, top, right, bottom) in pixels where it limits, and in fractions of the picture where it is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from importlib.resources import files
from random import Random

from PIL import Image, ImageDraw, ImageFont

Area = tuple[float, float, float, float]
Fill = Callable[[], tuple[int, int, int]]

FONTS = (
    ("font_caladea", "Caladea-Regular.ttf"),
    ("font_caladea", "Caladea-Bold.ttf"),
    ("font_manrope", "Manrope-Medium.ttf"),
    ("font_manrope", "Manrope-Bold.ttf"),
    ("font_hanken_grotesk", "HankenGrotesk-Regular.otf"),
    ("font_hanken_grotesk", "HankenGrotesk-Bold.otf"),
    ("font_source_sans_pro", "SourceSansPro-Regular.ttf"),
    ("font_source_sans_pro", "SourceSansPro-Bold.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Regular.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Bold.ttf"),
    ("font_fredoka_one", "FredokaOne-Regular.ttf"),
)
_SPACING = 0.35  # between rows, of the font's size


def print_rows(image: Image.Image, area: Area, rows: list[str], rng: Random, fill: Fill) -> Area:
    """Print one row or several, as large as they fit or a little smaller, near the middle of `area`."""
    left, top, right, bottom = area
    package, name = rng.choice(FONTS)
    unit = _extent(_font(package, name, 64), 64, rows)
    fit = min(0.92 * (right - left) / (unit[2] - unit[0]), 0.86 * (bottom - top) / (unit[3] - unit[1]))
    size = max(7, int(64 * fit * rng.uniform(0.7, 1.0)))
    font = _font(package, name, size)
    x0, y0, x1, y1 = _extent(font, size, rows)
    x = left + (right - left - (x1 - x0)) * rng.uniform(0.2, 0.8) - x0
    y = top + (bottom - top - (y1 - y0)) * rng.uniform(0.3, 0.7) - y0
    ImageDraw.Draw(image).text((x, y), "\n".join(rows), font=font, fill=fill(), spacing=_SPACING * size)
    return _fractions(image, (x + x0, y + y0, x + x1, y + y1))


def print_table(image: Image.Image, area: Area, rows: list[list[str]], rng: Random, fill: Fill) -> Area:
    """Print `rows` of cells in columns of one width, half of the time with ruled lines."""
    left, top, right, bottom = area
    wide, high = ((right - left) * rng.uniform(0.75, 0.96), (bottom - top) * rng.uniform(0.75, 0.96))
    x = left + (right - left - wide) * rng.uniform(0.2, 0.8)
    y = top + (bottom - top - high) * rng.uniform(0.2, 0.8)
    column, row = wide / len(rows[0]), high / len(rows)
    package, name = rng.choice(FONTS)
    unit = _font(package, name, 64).getbbox("00")
    fit = min(0.8 * column / (unit[2] - unit[0]), 0.75 * row / (unit[3] - unit[1]))
    font = _font(package, name, max(7, int(64 * fit * rng.uniform(0.75, 1.0))))
    pen, ink = ImageDraw.Draw(image), fill()
    inked: list[Area] = []
    if rng.random() < 0.5:
        inked.append((x, y, x + wide, y + high))
        width = max(1, round(min(wide, high) * 0.01))
        for number in range(len(rows) + 1):
            pen.line((x, y + number * row, x + wide, y + number * row), fill=ink, width=width)
        for number in range(len(rows[0]) + 1):
            pen.line((x + number * column, y, x + number * column, y + high), fill=ink, width=width)
    for down, cells in enumerate(rows):
        for across, number_text in enumerate(cells):
            middle = (x + (across + 0.5) * column, y + (down + 0.5) * row)
            pen.text(middle, number_text, font=font, fill=ink, anchor="mm")
            inked.append(pen.textbbox(middle, number_text, font=font, anchor="mm"))
    lefts, tops, rights, bottoms = zip(*inked, strict=True)
    return _fractions(image, (min(lefts), min(tops), max(rights), max(bottoms)))


def _extent(font: ImageFont.FreeTypeFont, size: int, rows: list[str]) -> Area:
    if len(rows) == 1:
        return font.getbbox(rows[0])
    pen = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = pen.multiline_textbbox((0, 0), "\n".join(rows), font=font, spacing=_SPACING * size)
    return left, top, right, bottom


def _fractions(image: Image.Image, area: Area) -> Area:
    x0, y0, x1, y1 = area
    return (
        max(0.0, x0 / image.width),
        max(0.0, y0 / image.height),
        min(1.0, x1 / image.width),
        min(1.0, y1 / image.height),
    )


@cache
def _font_path(package: str, name: str) -> str:
    return str(files(package) / "files" / name)


@lru_cache(maxsize=256)
def _font(package: str, name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_path(package, name), size)
