"""A style of drawing that training does not have, for the evaluation alone.

Shapes have rounded corners and a second line around them, edges are smoothed by Lanczos from four times the size, and
grounds are squared paper, a spotlight or clouds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from .printing import Area
from .scenes import COLOURS, Scene, Shape, cell, draw_text, extent, random_size, tint

_SCALE = 4
_Points = list[tuple[float, float]]


def unseen(scene: Scene, rng: Random, size: tuple[int, int] | None = None) -> tuple[Image.Image, Scene]:
    """Return `scene` painted in the style, and with its boxes. Arguments are those of `scenes.drawn`."""
    width, height = size or random_size(rng)
    image = _ground(width * _SCALE, height * _SCALE, rng)
    boxes = [_paint(image, shape, rng) for shape in scene.shapes]
    if scene.text:
        boxes.append(draw_text(image, scene.text, rng))
    return image.resize((width, height), Image.Resampling.LANCZOS), replace(scene, boxes=tuple(boxes))


def _ground(width: int, height: int, rng: Random) -> Image.Image:
    kind = rng.choice(("paper", "spotlight", "clouds"))
    if kind == "paper":
        image = Image.new("RGB", (width, height), (247, 248, 242))
        pen, step = ImageDraw.Draw(image), max(16, min(width, height) // rng.randint(8, 16))
        for x in range(step // 2, width, step):
            pen.line((x, 0, x, height), fill=(196, 214, 226), width=_SCALE)
        for y in range(step // 2, height, step):
            pen.line((0, y, width, y), fill=(196, 214, 226), width=_SCALE)
        return image
    if kind == "spotlight":
        across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        shade = np.hypot(across - rng.uniform(-0.5, 0.5), down - rng.uniform(-0.5, 0.5))
        pixels = np.array((252, 250, 244)) - np.clip(shade, 0, 1.5)[..., None] * np.array((28, 30, 34))
        return Image.fromarray(pixels.astype(np.uint8))
    grain = np.random.default_rng(rng.randrange(2**32)).uniform(205, 255, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(grain).resize((width, height), Image.Resampling.BICUBIC)


def _paint(image: Image.Image, shape: Shape, rng: Random) -> Area:
    left, top, right, bottom = cell(image, shape.place)
    room = min(right - left, bottom - top)
    side = room * (rng.uniform(0.30, 0.44) if shape.size == "small" else rng.uniform(0.68, 0.9))
    x = left + (right - left - side) * rng.uniform(0.1, 0.9)
    y = top + (bottom - top - side) * rng.uniform(0.1, 0.9)
    points = [(x + px * side, y + py * side) for px, py in _points(shape.shape)]
    fill = tint(rng, COLOURS[shape.colour], 12)
    pen, round_by = ImageDraw.Draw(image), side * 0.07
    ring = (90, 90, 96) if rng.random() < 0.5 else (255, 255, 255)
    for ink, width in ((ring, 2 * round_by), (fill, round_by)):
        pen.polygon(points, fill=ink)
        for px, py in _dense(points):
            pen.ellipse((px - width / 2, py - width / 2, px + width / 2, py + width / 2), fill=ink)
    return extent(
        image, [(px + dx, py + dy) for px, py in points for dx in (-round_by, round_by) for dy in (-round_by, round_by)]
    )


def _points(shape: str) -> _Points:
    """Return the outline in the unit square, inset by the rounding."""
    if shape == "circle":
        return _ring([0.43] * 40, 0.5)
    if shape == "square":
        return [(0.09, 0.09), (0.91, 0.09), (0.91, 0.91), (0.09, 0.91)]
    if shape == "triangle":
        return [(0.5, 0.1), (0.92, 0.88), (0.08, 0.88)]
    if shape == "star":
        return _ring([0.45, 0.2] * 5, 0.53)
    if shape == "heart":
        left = [(0.29 + 0.2 * math.cos(a), 0.3 - 0.2 * math.sin(a)) for a in np.linspace(math.pi * 1.15, 0.1, 14)]
        right = [(1 - px, py) for px, py in reversed(left)]
        return [*left, *right, (0.5, 0.9)]
    low, high = 0.36, 0.64
    near, far = 0.08, 0.92
    upper = [(low, near), (high, near), (high, low), (far, low)]
    return [
        *upper,
        (far, high),
        (high, high),
        (high, far),
        (low, far),
        (low, high),
        (near, high),
        (near, low),
        (low, low),
    ]


def _ring(radii: list[float], middle: float) -> _Points:
    step = 2 * math.pi / len(radii)
    return [(0.5 + r * math.sin(i * step), middle - r * math.cos(i * step)) for i, r in enumerate(radii)]


def _dense(points: _Points) -> _Points:
    """Return points along the closed outline, near enough that discs on them make a smooth band."""
    dense: _Points = []
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        count = max(2, int(math.hypot(x1 - x0, y1 - y0) / 2))
        dense += [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(count)]
    return dense
