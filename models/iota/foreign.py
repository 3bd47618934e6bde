"""Pictures of things that iota never learned, to measure how it answers about them: drawn, without fonts."""

# ruff: noqa: ARG001  # all drawings have the same arguments

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw

_SIZE = (400, 320)
_Draw = ImageDraw.ImageDraw


def _smiley(draw: _Draw, rng: Random) -> None:
    draw.ellipse((100, 60, 300, 260), "#f7d41f", "black", 4)
    draw.ellipse((150, 120, 175, 150), "black")
    draw.ellipse((225, 120, 250, 150), "black")
    draw.arc((145, 130, 255, 225), 20, 160, "black", 6)


def _house(draw: _Draw, rng: Random) -> None:
    draw.rectangle((110, 150, 290, 290), "#c98b5a", "black", 3)
    draw.polygon(((90, 150), (200, 60), (310, 150)), "#9c2f2f", "black")
    draw.rectangle((180, 210, 225, 290), "#5b3a1e")
    draw.rectangle((130, 175, 165, 210), "#bfe3ff", "black", 2)


def _tree(draw: _Draw, rng: Random) -> None:
    draw.rectangle((185, 190, 215, 300), "#6b4423")
    for _ in range(40):
        x, y = rng.gauss(200, 45), rng.gauss(130, 35)
        draw.ellipse((x - 25, y - 25, x + 25, y + 25), rng.choice(("#2e7d32", "#388e3c", "#1b5e20")))


def _invoice(draw: _Draw, rng: Random) -> None:
    draw.text((30, 20), "INVOICE 2026-0117", "black", font_size=24)
    draw.line((30, 55, 370, 55), "black", 2)
    for row, (what, price) in enumerate((("2 x paper", "9.80"), ("1 x toner", "61.20"), ("delivery", "4.90"))):
        draw.text((30, 80 + 40 * row), what, "black", font_size=20)
        draw.text((300, 80 + 40 * row), price, "black", font_size=20)
    draw.text((30, 240), "total", "black", font_size=24)
    draw.text((295, 240), "75.90", "black", font_size=24)


def _page(draw: _Draw, rng: Random) -> None:
    words = "the quick brown cat sat on a wide old chair and looked at the rain for a long time".split()
    for row in range(12):
        draw.text((20, 15 + 24 * row), " ".join(rng.choices(words, k=8)), "black", font_size=15)


def _bars(draw: _Draw, rng: Random) -> None:
    draw.line(((50, 30), (50, 280), (370, 280)), "black", 3)
    for number in range(6):
        draw.rectangle((70 + 50 * number, 280 - rng.randint(40, 230), 105 + 50 * number, 280), "#4477aa")


def _curve(draw: _Draw, rng: Random) -> None:
    draw.line(((40, 20), (40, 290), (380, 290)), "black", 2)
    draw.line([(40 + x, 160 - 90 * math.sin(x / 40)) for x in range(340)], "#cc3311", 4)


def _clock(draw: _Draw, rng: Random) -> None:
    draw.ellipse((80, 40, 320, 280), "white", "black", 6)
    for hour in range(12):
        x, y = math.sin(hour * math.pi / 6), math.cos(hour * math.pi / 6)
        draw.line((200 + 100 * x, 160 - 100 * y, 200 + 112 * x, 160 - 112 * y), "black", 5)
    draw.line((200, 160, 255, 120), "black", 8)
    draw.line((200, 160, 200, 60), "black", 5)


def _checkers(draw: _Draw, rng: Random) -> None:
    for x in range(10):
        for y in range(8):
            draw.rectangle((40 * x, 40 * y, 40 * x + 39, 40 * y + 39), "black" if (x + y) % 2 else "white")


def _stripes(draw: _Draw, rng: Random) -> None:
    for x, colour in enumerate(("#002395", "white", "#ed2939")):
        draw.rectangle((134 * x, 0, 134 * x + 133, 320), colour)


def _spiral(draw: _Draw, rng: Random) -> None:
    points = [(200 + t * math.cos(t / 7), 160 + t * math.sin(t / 7)) for t in range(150)]
    draw.line(points, "#663399", 6)


def _scribble(draw: _Draw, rng: Random) -> None:
    x, y, points = 200.0, 160.0, []
    for _ in range(120):
        x, y = min(380, max(20, x + rng.gauss(0, 30))), min(300, max(20, y + rng.gauss(0, 30)))
        points.append((x, y))
    draw.line(points, "#222222", 3)


def _night(draw: _Draw, rng: Random) -> None:
    draw.rectangle((0, 0, 400, 320), "#0b1030")
    for _ in range(120):
        x, y = rng.randrange(400), rng.randrange(320)
        draw.ellipse((x, y, x + 3, y + 3), "white")
    draw.ellipse((280, 40, 340, 100), "#f4f1d0")


def _hills(draw: _Draw, rng: Random) -> None:
    for y in range(320):
        draw.line((0, y, 400, y), (120 + y // 4, 170 + y // 6, 235))
    draw.ellipse((-120, 190, 240, 520), "#4c8c4a")
    draw.ellipse((150, 210, 520, 560), "#3b6e39")


def _face(draw: _Draw, rng: Random) -> None:
    draw.ellipse((130, 50, 270, 250), "#e0ac86", "#8d5a3b", 2)
    draw.pieslice((125, 35, 275, 190), 180, 360, "#3b2314")
    for x in (165, 215):
        draw.ellipse((x, 130, x + 22, 144), "white", "black", 1)
        draw.ellipse((x + 7, 132, x + 16, 143), "#3a5f8a")
    draw.line(((200, 145), (192, 180), (206, 182)), "#8d5a3b", 3)
    draw.arc((170, 180, 230, 220), 20, 160, "#a03c3c", 5)


_DRAWINGS: tuple[Callable[[_Draw, Random], None], ...] = (
    *(_smiley, _house, _tree, _invoice, _page, _bars, _curve, _clock),
    *(_checkers, _stripes, _spiral, _scribble, _night, _hills, _face),
)


def foreign_pictures() -> list[tuple[str, Image.Image]]:
    """Return names and pictures, 400x320, always the same."""
    pictures = []
    for draw in _DRAWINGS:
        image = Image.new("RGB", _SIZE, "#fbfaf5")
        draw(ImageDraw.Draw(image), Random(draw.__name__))
        pictures.append((draw.__name__.strip("_"), image))
    return pictures
