"""What iota's pictures can contain, and how they are drawn.

A `Scene` lists shapes and text with their places. `random_scene` makes one from a seeded generator, `draw` paints it.
The style (size of the picture, background, outline, tint, antialiasing, place within the cell, noise) is random and
independent of the answers, so that the model learns shapes and not one style.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from random import Random

from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = {
    "red": (215, 30, 35),
    "orange": (245, 135, 15),
    "yellow": (245, 215, 30),
    "green": (35, 150, 60),
    "blue": (35, 80, 205),
    "purple": (125, 45, 165),
    "pink": (245, 130, 185),
    "black": (20, 20, 22),
}
SIZES = ("small", "large")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
WORDS = (
    "apple ball bank bear bird boat book box bread bus cafe cake cat coin cup dog door exit fish flag "
    "fox gold hello home hotel ice king lamp lion milk moon music open park pen pizza queen rain "
    "road salt ship shop sofa stop sun taxi tea tree water wolf"
).split()
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

# Fractions of the picture, (left, top, right, bottom). Text fills one half, and shapes are in the other.
_CELLS = {
    "top left": (0.0, 0.0, 0.5, 0.5),
    "top right": (0.5, 0.0, 1.0, 0.5),
    "bottom left": (0.0, 0.5, 0.5, 1.0),
    "bottom right": (0.5, 0.5, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
    "middle": (0.2, 0.2, 0.8, 0.8),
    "page": (0.0, 0.0, 1.0, 1.0),
}


@dataclass(frozen=True)
class Shape:
    shape: str
    colour: str
    size: str
    place: str  # one of CORNERS, or "middle" if it is the only shape


@dataclass(frozen=True)
class Text:
    kind: str  # "number" or "word"
    text: str  # in lower case; a picture may print a word in capitals
    colour: str
    place: str  # "top", "bottom" or "middle"


@dataclass(frozen=True)
class Scene:
    """Shapes in reading order of their places, and at most one printed text."""

    shapes: tuple[Shape, ...]
    text: Text | None = None


def random_scene(rng: Random, text_share: float = 0.38) -> Scene:
    """Return one to four shapes or, with probability `text_share`, a text with up to two shapes. 2 % are empty."""
    kind = rng.random()
    if kind < 0.02:
        return Scene(())
    if kind < 0.02 + 0.98 * (1 - text_share):
        return Scene(_random_shapes(rng, list(CORNERS), rng.choice((1, 1, 2, 2, 3, 3, 4, 4)), middle=True))
    if rng.random() < 0.58:
        place = rng.choice(("top", "bottom"))
        free = [c for c in CORNERS if not c.startswith(place)]
        return Scene(_random_shapes(rng, free, rng.choice((1, 2))), random_text(rng, place))
    return Scene((), random_text(rng, "middle"))


def random_text(rng: Random, place: str) -> Text:
    if rng.random() < 0.5:
        digits = rng.choice((1, 2, 3, 3))
        low = 0 if digits == 1 else 10 ** (digits - 1)
        kind, text = "number", str(rng.randrange(low, 10**digits))
    else:
        kind, text = "word", rng.choice(WORDS)
    return Text(kind, text, rng.choice(list(COLOURS)), place)


def _random_shapes(rng: Random, places: list[str], count: int, middle: bool = False) -> tuple[Shape, ...]:
    if middle and count == 1 and rng.random() < 0.3:
        places = ["middle"]
    chosen = rng.sample(places, count)
    alike = rng.random() < 0.25  # repeated shapes and colours, so that counting is trained
    shapes, colours = list(SHAPES), list(COLOURS)
    if alike:
        shapes, colours = rng.sample(shapes, 2), rng.sample(colours, 2)
    return tuple(
        Shape(rng.choice(shapes), rng.choice(colours), rng.choice(SIZES), place)
        for place in (*CORNERS, "middle")
        if place in chosen
    )


def random_size(rng: Random) -> tuple[int, int]:
    """Return (width, height) in pixels: up to 2.5:1 either way, with 64 to 640 on the longer edge."""
    long = round(math.exp(rng.uniform(math.log(80), math.log(440))))
    if rng.random() < 0.1:
        long = rng.choice((64, 96, 128, 256, 320, 512, 640))
    ratio = rng.choice((1.0, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0, rng.uniform(1.0, 2.5)))
    short = max(56, round(long / ratio))
    return (long, short) if rng.random() < 0.6 else (short, long)


def draw(scene: Scene, rng: Random, size: tuple[int, int] | None = None) -> Image.Image:
    """Paint `scene` as an RGB picture of `size` (width, height); without `size`, it is random.

    The same scene and generator state give the same pixels.
    """
    width, height = size or random_size(rng)
    scale = rng.choice((1, 2, 2, 3)) if max(width, height) <= 400 else rng.choice((1, 2))
    background = _background(rng, {i.colour for i in (*scene.shapes, *((scene.text,) if scene.text else ()))})
    image = Image.new("RGB", (width * scale, height * scale), background)
    for shape in scene.shapes:
        _draw_shape(image, shape, rng)
    if scene.text:
        _draw_text(image, scene.text, rng)
    if scale > 1:
        image = image.resize((width, height), rng.choice((Image.Resampling.BOX, Image.Resampling.BICUBIC)))
    if rng.random() < 0.15:
        noise = Image.effect_noise((width, height), rng.uniform(4, 16)).convert("RGB")
        image = Image.blend(image, noise, 0.06)
    return image


def _tint(rng: Random, colour: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, c + rng.randint(-spread, spread))) for c in colour)
    return r, g, b


def _background(rng: Random, used: set[str]) -> tuple[int, int, int]:
    choices = [(255, 255, 255)] * 4 + [(250, 245, 230), (235, 235, 238), (225, 238, 245), (232, 245, 230)]
    if "black" not in used:
        choices += [(15, 15, 18), (55, 55, 60), (50, 45, 40)]
    if not used & {"yellow", "pink"}:
        choices += [(200, 200, 205), (215, 205, 190)]
    return _tint(rng, rng.choice(choices), 6)


def _draw_shape(image: Image.Image, shape: Shape, rng: Random) -> None:
    left, top, right, bottom = _cell(image, shape.place)
    room = min(right - left, bottom - top)
    side = room * (rng.uniform(0.30, 0.44) if shape.size == "small" else rng.uniform(0.68, 0.92))
    side = max(side, 6.0)
    x = left + (right - left - side) * rng.uniform(0.3, 0.7)
    y = top + (bottom - top - side) * rng.uniform(0.3, 0.7)
    fill = _tint(rng, COLOURS[shape.colour], 14)
    outline = None
    if rng.random() < 0.25:
        dark = rng.uniform(0.45, 0.8)
        outline = tuple(int(c * dark) for c in fill)
    points = _outline(shape.shape, rng)
    stretch = rng.uniform(0.94, 1.06)
    polygon = [(x + (0.5 + (px - 0.5) * stretch) * side, y + py * side) for px, py in points]
    pen = ImageDraw.Draw(image)
    pen.polygon(polygon, fill=fill)
    if outline:
        pen.line([*polygon, polygon[0], polygon[1]], fill=outline, width=max(1, round(side * 0.04)), joint="curve")


def _outline(shape: str, rng: Random) -> list[tuple[float, float]]:
    """Return the shape's outline in the unit square, with y pointing down."""
    if shape == "circle":
        return _radial([0.5] * 48, 0.0)
    if shape == "square":
        return _turn([(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95)], rng.uniform(-0.08, 0.08))
    if shape == "triangle":
        apex = rng.uniform(0.42, 0.58)
        return _turn([(apex, 0.04), (0.98, 0.94), (0.02, 0.94)], rng.uniform(-0.1, 0.1))
    if shape == "star":
        inner = rng.uniform(0.19, 0.24)
        return _radial([0.52, inner] * 5, rng.uniform(-0.12, 0.12))
    if shape == "heart":
        turns = [2 * math.pi * i / 48 for i in range(48)]
        xs = [16 * math.sin(t) ** 3 for t in turns]
        ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
        return [(0.5 + x / 34, 0.46 - y / 32) for x, y in zip(xs, ys, strict=True)]
    arm = rng.uniform(0.13, 0.19)
    low, high = 0.5 - arm, 0.5 + arm
    cross = [(low, 0), (high, 0), (high, low), (1, low), (1, high), (high, high)]
    cross += [(high, 1), (low, 1), (low, high), (0, high), (0, low), (low, low)]
    return _turn([(float(px), float(py)) for px, py in cross], rng.uniform(-0.1, 0.1))


def _radial(radii: list[float], turn: float) -> list[tuple[float, float]]:
    step = 2 * math.pi / len(radii)
    return [(0.5 + r * math.sin(turn + i * step), 0.5 - r * math.cos(turn + i * step)) for i, r in enumerate(radii)]


def _turn(points: list[tuple[float, float]], angle: float) -> list[tuple[float, float]]:
    c, s = math.cos(angle), math.sin(angle)
    return [(0.5 + (x - 0.5) * c - (y - 0.5) * s, 0.5 + (x - 0.5) * s + (y - 0.5) * c) for x, y in points]


def _draw_text(image: Image.Image, text: Text, rng: Random) -> None:
    left, top, right, bottom = _cell(image, "page" if text.place == "middle" else text.place)
    printed = text.text
    if text.kind == "word":
        printed = rng.choice((printed, printed, printed.capitalize(), printed.upper()))
    package, name = rng.choice(FONTS)
    unit = _font(package, name, 64).getbbox(printed)
    fit = min(0.92 * (right - left) / (unit[2] - unit[0]), 0.86 * (bottom - top) / (unit[3] - unit[1]))
    font = _font(package, name, max(7, int(64 * fit * rng.uniform(0.7, 1.0))))
    x0, y0, x1, y1 = font.getbbox(printed)
    x = left + (right - left - (x1 - x0)) * rng.uniform(0.2, 0.8) - x0
    y = top + (bottom - top - (y1 - y0)) * rng.uniform(0.3, 0.7) - y0
    ImageDraw.Draw(image).text((x, y), printed, font=font, fill=_tint(rng, COLOURS[text.colour], 14))


def _cell(image: Image.Image, place: str) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = _CELLS[place]
    return x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height


@cache
def _font_path(package: str, name: str) -> str:
    return str(files(package) / "files" / name)


@lru_cache(maxsize=256)
def _font(package: str, name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_path(package, name), size)
