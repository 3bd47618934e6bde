"""Many styles of drawing the same scene: grounds, outlines, hollow shapes, shadows, shaky lines, blur, noise.

Places and sizes vary more than in `scenes.draw`, too, so that boxes have to be measured and not remembered.
"""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .printing import Area
from .scenes import COLOURS, Scene, Shape, cell, colours_of, draw_text, extent, outline_of, random_size, tint

_Colour = tuple[int, int, int]
_LIGHT = ((255, 255, 255), (250, 245, 230), (225, 238, 245), (232, 245, 230), (250, 232, 236), (205, 205, 210))
_DARK = ((15, 15, 18), (50, 50, 55), (30, 35, 60), (60, 45, 35), (25, 50, 40))


def styled(scene: Scene, rng: Random, size: tuple[int, int] | None = None) -> tuple[Image.Image, Scene]:
    """Return `scene` painted in a random style, and with its boxes. Arguments are those of `scenes.drawn`."""
    width, height = size or random_size(rng)
    scale = rng.choice((1, 1, 2, 3)) if max(width, height) <= 300 else 1
    dark = "black" not in colours_of(scene) and rng.random() < 0.3
    image = _ground((width * scale, height * scale), dark, rng)
    style = _ShapeStyle(rng, dark)
    boxes = [style.paint(image, shape, rng) for shape in scene.shapes]
    if scene.text:
        boxes.append(draw_text(image, scene.text, rng))
    if scale > 1:
        resampling = rng.choice((Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.NEAREST))
        image = image.resize((width, height), resampling)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(min(width, height) * rng.uniform(0.002, 0.008)))
    if rng.random() < 0.3:
        noise = Image.effect_noise((width, height), rng.uniform(10, 60)).convert("RGB")
        image = Image.blend(image, noise, rng.uniform(0.04, 0.16))
    return image, replace(scene, boxes=tuple(boxes))


def _ground(size: tuple[int, int], dark: bool, rng: Random) -> Image.Image:
    """Return a ground of one colour, or of two near ones: as a gradient, in stripes, checks or dots."""
    one = tint(rng, rng.choice(_DARK if dark else _LIGHT), 10)
    kind = rng.choice(("plain", "plain", "gradient", "stripes", "checks", "dots"))
    if kind == "plain":
        return Image.new("RGB", size, one)
    change = rng.randint(10, 32) * (1 if dark else -1)
    two: _Colour = (one[0] + change, one[1] + change, one[2] + change)
    x, y = np.meshgrid(np.arange(size[0]) / max(size), np.arange(size[1]) / max(size))
    angle, step = rng.uniform(0, math.pi), rng.uniform(0.03, 0.2)
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == "gradient":
        share = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    elif kind == "stripes":
        share = (along / step % 1 < 0.5).astype(float)
    elif kind == "checks":
        share = ((x // step + y // step) % 2).astype(float)
    else:
        share = (((x % step) / step - 0.5) ** 2 + ((y % step) / step - 0.5) ** 2 < 0.06).astype(float)
    pixels = np.array(one) + share[..., None] * (np.array(two) - np.array(one))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


class _ShapeStyle:
    """How all shapes of one picture are painted."""

    def __init__(self, rng: Random, dark: bool) -> None:
        self._line = rng.choice(("none", "none", "darker", "lighter", "black", "white"))
        self._width = rng.uniform(0.02, 0.09)
        self._hollow = rng.random() < 0.15
        self._shaky = rng.choice((0.0, 0.0, 0.0, 0.012, 0.025))
        self._shadow = not dark and rng.random() < 0.15
        self._spread = rng.choice((10, 20, 30))

    def paint(self, image: Image.Image, shape: Shape, rng: Random) -> Area:
        left, top, right, bottom = cell(image, shape.place)
        room = min(right - left, bottom - top)
        side = max(6.0, room * (rng.uniform(0.27, 0.46) if shape.size == "small" else rng.uniform(0.64, 0.96)))
        x = left + (right - left - side) * rng.uniform(0.03, 0.97)
        y = top + (bottom - top - side) * rng.uniform(0.03, 0.97)
        stretch = rng.uniform(0.88, 1.0) if rng.random() < 0.5 else 1.0
        wide, high = (side * stretch, side) if rng.random() < 0.5 else (side, side * stretch)
        shaken = [
            (px + rng.gauss(0, self._shaky), py + rng.gauss(0, self._shaky)) if self._shaky else (px, py)
            for px, py in outline_of(shape.shape, rng)
        ]
        polygon = [(x + px * wide, y + py * high) for px, py in shaken]
        fill = tint(rng, COLOURS[shape.colour], self._spread)
        pen = ImageDraw.Draw(image)
        if self._shadow:
            off = side * 0.05
            r, g, b = image.getpixel((min(image.width - 1, int(x)), min(image.height - 1, int(y))))  # type: ignore[misc]
            pen.polygon([(px + off, py + off) for px, py in polygon], fill=(r * 4 // 5, g * 4 // 5, b * 4 // 5))
        closed = [*polygon, polygon[0], polygon[1]]
        if self._hollow:
            pen.line(closed, fill=fill, width=max(2, round(side * 0.14)), joint="curve")
            return extent(image, polygon)
        pen.polygon(polygon, fill=fill)
        ink = self._ink(fill, shape.colour)
        if ink:
            pen.line(closed, fill=ink, width=max(1, round(side * self._width)), joint="curve")
        return extent(image, polygon)

    def _ink(self, fill: _Colour, colour: str) -> _Colour | None:
        if self._line == "none" or (self._line == "black" and colour == "black"):
            return None
        r, g, b = fill
        lines: dict[str, _Colour] = {
            "darker": (r // 2, g // 2, b // 2),
            "lighter": ((r + 255) // 2, (g + 255) // 2, (b + 255) // 2),
            "black": (20, 20, 20),
            "white": (250, 250, 250),
        }
        return lines[self._line]
