"""A prompt as a language model takes it: token ids, and slots where the embeddings of a picture go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pocketvlm.native.llama import Model
from pocketvlm.templates.prompt import TextSpan, joined
from pocketvlm.vision.encoder import Seen, Slot

Unit = int | Slot


def units_of(model: Model, pieces: Iterable[TextSpan | Seen]) -> list[Unit]:
    """`pieces` in prompt order; pictures are prepared already."""
    flat: list[TextSpan | Unit] = []
    for piece in pieces:
        flat += piece.pieces if isinstance(piece, Seen) else (piece,)
    parts: Iterable[TextSpan | Unit] = joined(flat)
    units: list[Unit] = []
    for part in parts:
        if isinstance(part, TextSpan):
            units.extend(model.tokenize(part.text, special=part.special, first=not units))
        else:
            units.append(part)
    # Some templates spell the first token, others leave it to the tokenizer.
    if model.adds_bos and (not units or units[0] != model.bos):
        units.insert(0, model.bos)
    return units


def tokens_before_slots(units: Sequence[Unit]) -> list[int]:
    found: list[int] = []
    for unit in units:
        if not isinstance(unit, int):
            break
        found.append(unit)
    return found
