"""Draw docs/sample.png, the picture of `make demo`: `python -m iota.sample PATH`."""

from __future__ import annotations

import sys
from random import Random

from .scenes import Scene, Shape, Text, draw

SAMPLE = Scene(
    (Shape("circle", "red", "large", "top left"), Shape("star", "blue", "small", "top right")),
    Text("number", "42", "green", "bottom"),
)

if __name__ == "__main__":
    draw(SAMPLE, Random(4), (640, 480)).save(sys.argv[1], optimize=True)
