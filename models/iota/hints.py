"""An auxiliary loss for the encoder: a linear map predicts the scene, with boxes, from the tokens of the whole picture.

The language model alone trains a new encoder slowly: without hints, reading was at 5 % after half an hour. The map is
discarded after training.
"""

from __future__ import annotations

import math

import torch

from .printing import Area
from .scenes import CELLS, COLOURS, CORNERS, SHAPES, SIZES, WORDS, Scene

_PLACES = (*CORNERS, "middle")
_TEXT_PLACES = ("top", "bottom", "middle")
_KINDS = ("number", "word", "line", "table")
_DIGITS = 3
_LINE = 4  # words
_TABLE = (3, 3)  # rows, columns of at most two digits
IGNORED = -100  # what a picture without a line or table is not asked for

CLASSES: tuple[int, ...] = (
    *((len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1) * len(_PLACES)),
    *(len(_KINDS) + 1, len(_TEXT_PLACES) + 1, len(COLOURS) + 1, len(WORDS) + 1),
    *(11,) * _DIGITS,
    *(len(WORDS) + 1,) * _LINE,
    *(11,) * (2 * _TABLE[0] * _TABLE[1]),
)
_FIRST_DIGIT = 3 * len(_PLACES) + 4


def targets(scene: Scene) -> list[int]:
    """Return one class for each entry of CLASSES; 0 means "nothing there"."""
    by_place = {s.place: s for s in scene.shapes}
    colours = list(COLOURS)
    classes: list[int] = []
    for place in _PLACES:
        shape = by_place.get(place)
        classes += (
            [SHAPES.index(shape.shape) + 1, colours.index(shape.colour) + 1, SIZES.index(shape.size) + 1]
            if shape
            else [0, 0, 0]
        )
    text = scene.text
    if text is None:
        return classes + [0] * (4 + _DIGITS) + _page("", "")
    word = WORDS.index(text.text) + 1 if text.kind == "word" else 0
    digits = [int(d) + 1 for d in text.text] if text.kind == "number" else []
    classes += [_KINDS.index(text.kind) + 1, _TEXT_PLACES.index(text.place) + 1, colours.index(text.colour) + 1, word]
    return classes + digits + [0] * (_DIGITS - len(digits)) + _page(text.kind, text.text)


def _page(kind: str, text: str) -> list[int]:
    """Return the classes of a line's words and of the digits of a table's cells; a cell's tens come first."""
    words = [IGNORED] * _LINE
    if kind == "line":
        words = [WORDS.index(word) + 1 for word in text.split()]
        words += [0] * (_LINE - len(words))
    if kind != "table":
        return words + [IGNORED] * (2 * _TABLE[0] * _TABLE[1])
    rows = [row.split() for row in text.split("\n")]
    cells = [[[0, 0]] * _TABLE[1] for _ in range(_TABLE[0])]
    for down, row in enumerate(rows):
        for across, number in enumerate(row):
            cells[down][across] = [int(number[-2]) + 1 if len(number) > 1 else 0, int(number[-1]) + 1]
    return words + [digit for row in cells for cell in row for digit in cell]


def box_targets(scene: Scene, side: int) -> list[Area]:
    """Return a box for each of side x side tokens: that of the thing in whose part of the picture it is.

    In fractions of the picture; nan where nothing is, or where the scene was not drawn.
    """
    boxes: list[Area] = [(math.nan,) * 4] * side**2
    places = [shape.place for shape in scene.shapes]
    if scene.text:
        places.append("page" if scene.text.place == "middle" else scene.text.place)
    for place, box in zip(places, scene.boxes, strict=False):
        left, top, right, bottom = CELLS[place]
        for token in range(side**2):
            x, y = (token % side + 0.5) / side, (token // side + 0.5) / side
            if left < x < right and top < y < bottom:
                boxes[token] = box
    return boxes


class Hints(torch.nn.Module):
    """features [pictures, tokens, width] of the whole picture, classes [pictures, len(CLASSES)], boxes [pictures,
    tokens, 4] -> the mean loss of classes and that of boxes, which is their mean distance in tenths of the picture.

    One map reads boxes from every token: so the language model, too, needs only one to read them.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.read = torch.nn.Linear(tokens * width, sum(CLASSES))
        self.measure = torch.nn.Linear(width, 4)
        self.places = torch.nn.Parameter(torch.full((tokens, 4), 0.5))

    def forward(self, features: torch.Tensor, classes: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        logits = self.read(features.flatten(1)).float().split(list(CLASSES), dim=1)
        losses, weights = [], []
        for number, part in enumerate(logits):
            known = classes[:, number] != IGNORED
            if not known.any():
                continue
            digits = _FIRST_DIGIT <= number < _FIRST_DIGIT + _DIGITS  # the hardest to learn
            losses.append(torch.nn.functional.cross_entropy(part[known], classes[known, number]) * (3 if digits else 1))
            weights.append(float(known.float().mean()) ** 0.5)
        classified = (torch.stack(losses) * torch.tensor(weights)).sum() / sum(weights)
        there = ~boxes.isnan()
        if not there.any():
            return classified
        # Scaled, because the optimizer's steps would otherwise move boxes by more than they are wrong.
        measured = 0.1 * self.measure(features).float() + self.places
        return classified + 10 * (measured - boxes)[there].abs().mean()
