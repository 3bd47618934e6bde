"""A prompt as a language model takes it: token ids, and slots where the embeddings of a picture go."""

from __future__ import annotations

from collections.abc import Iterable

from pocketvlm.native.llama import Model
from pocketvlm.prompt import TextSpan
from pocketvlm.vision.encoder import Seen, Slot

Unit = int | Slot


def units_of(model: Model, pieces: Iterable[TextSpan | Seen]) -> list[Unit]:
    """`pieces` in prompt order; pictures are prepared already."""
    units: list[Unit] = []
    for piece in pieces:
        if isinstance(piece, TextSpan):
            units.extend(model.tokenize(piece.text, special=piece.special))
        else:
            units.extend(piece.pieces)
    # Some templates spell the first token, others leave it to the tokenizer.
    if model.adds_bos and (not units or units[0] != model.bos):
        units.insert(0, model.bos)
    return units
