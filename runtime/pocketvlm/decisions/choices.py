"""The answers among which a model decides: some texts, yes or no, or the numbers of a scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pocketvlm.errors import RequestError, quoted
from pocketvlm.messages.base import is_encodable

Kind = Literal["choice", "yes_no", "scale"]
MAX_CHOICES = 255  # OpenAI's limit, too
MAX_CHARACTERS = 2000  # of one choice
# How models write these answers. The probability of yes is that of all its forms together: which one a model is used to
# depends on what it was trained on, and says nothing about the picture.
_YES_NO = {"yes": ("Yes", "yes", "Yes.", "yes."), "no": ("No", "no", "No.", "no.")}
_SCALE = re.compile(r"(-?\d{1,9})\s*(?:-|\.\.)\s*(-?\d{1,9})")


@dataclass(frozen=True)
class Choices:
    """`texts` are the ways in which each of the `names` may be written; its probability is their sum.

    `param` is the path of the field that gives them, for errors.
    """

    kind: Kind
    names: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    param: str = "choices"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of a scale."""
        return tuple(map(int, self.names)) if self.kind == "scale" else ()

    @property
    def flat(self) -> tuple[str, ...]:
        return tuple(text for texts in self.texts for text in texts)

    def path(self, number: int) -> str:
        """Return the path of one choice."""
        return f"{self.param}.{number}" if self.kind == "choice" else self.param


def choices_of(
    choices: Sequence[str] | None = None, yes_no: bool = False, scale: Sequence[int] | str | None = None
) -> Choices:
    """Return the choices that a caller gives in one of the three ways.

    `scale` is the least and the greatest number, also as "0-10". Raises RequestError, which names the wrong one.
    """
    given = [name for name, value in (("choices", choices), ("yes_no", yes_no or None), ("scale", scale)) if value]
    if len(given) > 1:
        raise RequestError(f"excludes {given[0]}; ask one after the other", given[1])
    if yes_no:
        if yes_no is not True:
            raise RequestError("must be true or false", "yes_no")
        return YES_NO
    if scale is not None:
        return scale_of(scale)
    if choices is None:
        raise RequestError("are needed: some texts, or yes_no, or a scale", "choices")
    return texts_of(choices)


def texts_of(texts: Sequence[Any], param: str = "choices") -> Choices:
    """Return texts as choices. White space around a text is dropped. Raises RequestError with the path of a text."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise RequestError("must be a list of texts", param)
    if not 2 <= len(texts) <= MAX_CHOICES:
        raise RequestError(f"must have from 2 to {MAX_CHOICES} items, not {len(texts)}", param)
    names: dict[str, int] = {}
    for number, text in enumerate(texts):
        path = f"{param}.{number}"
        if not isinstance(text, str):
            raise RequestError("must be a string", path)
        if not is_encodable(text):
            raise RequestError("has half of a surrogate pair; send the text as UTF-8", path)
        if not (name := text.strip()):
            raise RequestError("must not be empty", path)
        if len(name) > MAX_CHARACTERS:
            raise RequestError(f"has {len(name):,} characters; at most {MAX_CHARACTERS:,} are supported", path)
        if name in names:
            raise RequestError(f"is the same as {param}.{names[name]}: {quoted(name)}", path)
        names[name] = number
    return Choices("choice", tuple(names), tuple((name,) for name in names), param)


def scale_of(scale: Sequence[int] | str) -> Choices:
    """Return the whole numbers of a scale as choices. Raises RequestError."""
    if isinstance(scale, str):
        match = _SCALE.fullmatch(scale.strip())
        if match is None:
            raise RequestError(f"must be two whole numbers such as 0-10, not {quoted(scale)}", "scale")
        scale = (int(match[1]), int(match[2]))
    whole = isinstance(scale, Sequence) and all(type(number) is int for number in scale)
    if not whole or len(scale) != 2:
        raise RequestError("must be two whole numbers: the least and the greatest", "scale")
    least, greatest = scale
    if least >= greatest:
        raise RequestError(f"must go from the least number to the greatest, not from {least} to {greatest}", "scale")
    if greatest - least >= MAX_CHOICES:
        raise RequestError(f"has {greatest - least + 1:,} numbers; at most {MAX_CHOICES} are supported", "scale")
    names = tuple(str(number) for number in range(least, greatest + 1))
    return Choices("scale", names, tuple((name,) for name in names), "scale")


YES_NO = Choices("yes_no", tuple(_YES_NO), tuple(_YES_NO.values()), "yes_no")
