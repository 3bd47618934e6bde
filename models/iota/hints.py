"""An auxiliary loss for the encoder: one linear map predicts the scene from the tokens of the whole picture.

The language model alone trains a new encoder slowly: without hints, reading was at 5 % after half an hour. The map is
discarded after training.
"""

from __future__ import annotations

import torch

from .scenes import COLOURS, CORNERS, SHAPES, SIZES, WORDS, Scene

_PLACES = (*CORNERS, "middle")
_TEXT_PLACES = ("top", "bottom", "middle")
_KINDS = ("number", "word")
_DIGITS = 3

CLASSES: tuple[int, ...] = (
    *((len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1) * len(_PLACES)),
    *(len(_KINDS) + 1, len(_TEXT_PLACES) + 1, len(COLOURS) + 1, len(WORDS) + 1),
    *(11,) * _DIGITS,
)


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
        return classes + [0] * (4 + _DIGITS)
    word = WORDS.index(text.text) + 1 if text.kind == "word" else 0
    digits = [int(d) + 1 for d in text.text] if text.kind == "number" else []
    classes += [_KINDS.index(text.kind) + 1, _TEXT_PLACES.index(text.place) + 1, colours.index(text.colour) + 1, word]
    return classes + digits + [0] * (_DIGITS - len(digits))


class Hints(torch.nn.Module):
    """features [pictures, tokens, width] of the whole picture, classes [pictures, len(CLASSES)] -> mean loss."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.read = torch.nn.Linear(tokens * width, sum(CLASSES))

    def forward(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        logits = self.read(features.flatten(1)).float().split(list(CLASSES), dim=1)
        losses = [torch.nn.functional.cross_entropy(part, classes[:, i]) for i, part in enumerate(logits)]
        losses[-1 - _DIGITS :] = [3 * loss for loss in losses[-1 - _DIGITS :]]  # digits are the hardest to learn
        return torch.stack(losses).mean()
