"""A prompt as units for a language model: token ids, and spans for the embeddings of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from unicodedata import normalize

from pocketvlm.native.llama import Model
from pocketvlm.templates.prompt import TextSpan, joined
from pocketvlm.vision.encoder import EmbeddingSpan, PreparedImage

PromptUnit = int | EmbeddingSpan
_NEAR = 256  # characters of a text that can change how what follows is tokenized


@dataclass(frozen=True)
class PromptUnits:
    """A prompt. Its first `given` units end with the last message; what opens the answer follows.

    The next turn's prompt begins with the same messages, but need not open earlier answers in the same way: some
    templates drop thoughts and their marks.
    """

    units: list[PromptUnit]
    given: int


def units_of(model: Model, pieces: Iterable[TextSpan | PreparedImage]) -> list[PromptUnit]:
    """Return the units of a prompt. `pieces` are texts and prepared pictures in prompt order."""
    return prompt_units(model, pieces).units


def prompt_units(model: Model, pieces: Iterable[TextSpan | PreparedImage]) -> PromptUnits:
    """Do the same as `units_of`, and return how many of them the messages give."""
    flat: list[TextSpan | PromptUnit] = []
    for piece in pieces:
        flat += piece.pieces if isinstance(piece, PreparedImage) else (piece,)
    parts: Iterable[TextSpan | PromptUnit] = joined(flat)
    units: list[PromptUnit] = []
    opening = 0
    for part in parts:
        if isinstance(part, TextSpan):
            tokens = model.tokenize(part.text, special=part.special, first=not units)
            units.extend(tokens)
            opening += len(tokens) if part.opening else 0
        else:
            units.append(part)
    # Some templates write the BOS token, others leave it to the tokenizer.
    if model.adds_bos and (not units or units[0] != model.bos):
        units.insert(0, model.bos)
    return PromptUnits(units, len(units) - opening)


def following_tokens(model: Model, before: TextSpan | None, text: str) -> list[int]:
    """Return the tokens of a text that follows a prompt whose last text is `before`; None after a control token.

    They are those that both texts have together where the prompt's own tokens stay the same. Otherwise it is the text
    alone that is tokenized, because a model writes behind the prompt's tokens as they are. [] where the tokens are not
    those of this text, because the vocabulary lacks a part of it.
    """
    if before is not None:
        start, whole = (model.tokenize(before.text[-_NEAR:] + added, special=False) for added in ("", text))
        if whole[: len(start)] == start:
            return _if_exact(model, whole[len(start) :], text)
    return _if_exact(model, model.tokenize(text, special=False), text)


def _if_exact(model: Model, tokens: list[int], text: str) -> list[int]:
    written = b"".join(map(model.piece, tokens)).decode("utf-8", "replace")
    return tokens if normalize("NFC", written).strip() == normalize("NFC", text).strip() else []


def leading_tokens(units: Sequence[PromptUnit]) -> list[int]:
    """Return the tokens before the first span."""
    tokens: list[int] = []
    for unit in units:
        if not isinstance(unit, int):
            break
        tokens.append(unit)
    return tokens
