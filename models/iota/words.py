"""Words for iota's pictures: articles, plurals, places, and names that fit only one shape."""

from __future__ import annotations

from random import Random

from .scenes import Scene, Shape


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def at(place: str) -> str:
    return "in the middle" if place == "middle" else f"at the {place}"


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def shape_at(scene: Scene, place: str) -> Shape | None:
    return next((s for s in scene.shapes if s.place == place), None)


def name_of(scene: Scene, shape: Shape, rng: Random) -> str | None:
    """Return a name that fits only this shape ("star", "red star" or "small red star"), or None if there is none."""
    names = [shape.shape, f"{shape.colour} {shape.shape}", f"{shape.size} {shape.colour} {shape.shape}"]
    counts = [
        sum(s.shape == shape.shape for s in scene.shapes),
        sum((s.shape, s.colour) == (shape.shape, shape.colour) for s in scene.shapes),
        sum((s.shape, s.colour, s.size) == (shape.shape, shape.colour, shape.size) for s in scene.shapes),
    ]
    fitting = [name for name, count in zip(names, counts, strict=True) if count == 1]
    return rng.choice(fitting[:2]) if fitting else None
