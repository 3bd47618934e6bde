"""What iota's pictures can contain, and how they are drawn.

A `Scene` lists shapes and text with their places. `random_scene` makes one from a seeded generator, `draw` paints it.
The style (size of the picture, background, outline, tint, antialiasing, place within the cell, noise) is random and
independent of the answers, so that the model learns shapes and not one style.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from PIL import Image, ImageDraw

from .printing import Area, print_rows, print_table

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
# Fractions of the picture, (left, top, right, bottom). Text fills one half, and shapes are in the other.
CELLS: dict[str, Area] = {
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
    kind: str  # "number", "word", "line" of words or "table" of numbers
    text: str  # in lower case; a picture may print words in capitals. Words of a line, cells of a table: "1 20\n3 4"
    colour: str
    place: str  # "top", "bottom" or "middle"


@dataclass(frozen=True)
class Scene:
    """Shapes in reading order of their places, and at most one printed text.

    A scene that was drawn also has the box of each shape and then of the text, as fractions of the picture.
    """

    shapes: tuple[Shape, ...]
    text: Text | None = None
    boxes: tuple[Area, ...] = ()


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


def random_page(rng: Random) -> Scene:
    """Return a line of two to four words, or a table of two or three rows and columns of numbers below 100."""
    colour = rng.choice(list(COLOURS))
    if rng.random() < 0.5:
        return Scene((), Text("line", " ".join(rng.sample(WORDS, rng.choice((2, 3, 4)))), colour, "middle"))
    rows, columns = rng.choice(((2, 2), (2, 3), (3, 2)))
    cells = ((rng.randrange(10 ** rng.choice((1, 2, 2))) for _ in range(columns)) for _ in range(rows))
    return Scene((), Text("table", "\n".join(" ".join(map(str, row)) for row in cells), colour, "middle"))


def draw(scene: Scene, rng: Random, size: tuple[int, int] | None = None) -> Image.Image:
    """Paint `scene` as an RGB picture of `size` (width, height); without `size`, it is random.

    The same scene and generator state give the same pixels.
    """
    return drawn(scene, rng, size)[0]


def drawn(scene: Scene, rng: Random, size: tuple[int, int] | None = None) -> tuple[Image.Image, Scene]:
    """Return what `draw` does, and the scene with its boxes."""
    width, height = size or random_size(rng)
    scale = rng.choice((1, 2, 2, 3)) if max(width, height) <= 400 else rng.choice((1, 2))
    background = _background(rng, colours_of(scene))
    image = Image.new("RGB", (width * scale, height * scale), background)
    boxes = [_draw_shape(image, shape, rng) for shape in scene.shapes]
    if scene.text:
        boxes.append(draw_text(image, scene.text, rng))
    if scale > 1:
        image = image.resize((width, height), rng.choice((Image.Resampling.BOX, Image.Resampling.BICUBIC)))
    if rng.random() < 0.15:
        noise = Image.effect_noise((width, height), rng.uniform(4, 16)).convert("RGB")
        image = Image.blend(image, noise, 0.06)
    return image, replace(scene, boxes=tuple(boxes))


def colours_of(scene: Scene) -> set[str]:
    return {i.colour for i in (*scene.shapes, *((scene.text,) if scene.text else ()))}


def tint(rng: Random, colour: tuple[int, int, int], spread: int) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, c + rng.randint(-spread, spread))) for c in colour)
    return r, g, b


def _background(rng: Random, used: set[str]) -> tuple[int, int, int]:
    choices = [(255, 255, 255)] * 4 + [(250, 245, 230), (235, 235, 238), (225, 238, 245), (232, 245, 230)]
    if "black" not in used:
        choices += [(15, 15, 18), (55, 55, 60), (50, 45, 40)]
    if not used & {"yellow", "pink"}:
        choices += [(200, 200, 205), (215, 205, 190)]
    return tint(rng, rng.choice(choices), 6)


def _draw_shape(image: Image.Image, shape: Shape, rng: Random) -> Area:
    left, top, right, bottom = cell(image, shape.place)
    room = min(right - left, bottom - top)
    side = room * (rng.uniform(0.30, 0.44) if shape.size == "small" else rng.uniform(0.68, 0.92))
    side = max(side, 6.0)
    x = left + (right - left - side) * rng.uniform(0.3, 0.7)
    y = top + (bottom - top - side) * rng.uniform(0.3, 0.7)
    fill = tint(rng, COLOURS[shape.colour], 14)
    outline = None
    if rng.random() < 0.25:
        dark = rng.uniform(0.45, 0.8)
        outline = tuple(int(c * dark) for c in fill)
    points = outline_of(shape.shape, rng)
    stretch = rng.uniform(0.94, 1.06)
    polygon = [(x + (0.5 + (px - 0.5) * stretch) * side, y + py * side) for px, py in points]
    pen = ImageDraw.Draw(image)
    pen.polygon(polygon, fill=fill)
    if outline:
        pen.line([*polygon, polygon[0], polygon[1]], fill=outline, width=max(1, round(side * 0.04)), joint="curve")
    return extent(image, polygon)


def extent(image: Image.Image, points: list[tuple[float, float]]) -> Area:
    """Return the box around points in pixels, as fractions of the picture."""
    xs, ys = zip(*points, strict=True)
    edges = min(xs) / image.width, min(ys) / image.height, max(xs) / image.width, max(ys) / image.height
    left, top, right, bottom = (min(1.0, max(0.0, edge)) for edge in edges)
    return left, top, right, bottom


def outline_of(shape: str, rng: Random) -> list[tuple[float, float]]:
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


def draw_text(image: Image.Image, text: Text, rng: Random) -> Area:
    area = cell(image, "page" if text.place == "middle" else text.place)

    def fill() -> tuple[int, int, int]:
        return tint(rng, COLOURS[text.colour], 14)

    if text.kind == "table":
        return print_table(image, area, [row.split() for row in text.text.split("\n")], rng, fill)
    printed = text.text
    if text.kind != "number":
        printed = rng.choice((printed, printed, printed.capitalize(), printed.upper()))
    rows = _in_rows(printed.split(), rng) if text.kind == "line" else [printed]
    return print_rows(image, area, rows, rng, fill)


def _in_rows(words: list[str], rng: Random) -> list[str]:
    """Break a line after every second word, or before: longer rows could not be read in one tile."""
    if len(words) == 2 and rng.random() < 0.5:
        return words
    split = rng.choice((1, 2)) if len(words) == 3 else 2
    return [" ".join(part) for part in (words[:split], words[split:]) if part]


def cell(image: Image.Image, place: str) -> Area:
    """Return the part of the picture at `place`, in pixels."""
    x0, y0, x1, y1 = CELLS[place]
    return x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height
