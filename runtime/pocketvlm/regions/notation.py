"""What a kind of model states about places: how it writes them, what its numbers mean, and what it is asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pocketvlm.regions.place import Place

THING = "{thing}"
Grammar = Callable[[Mapping[str, int]], str]


@dataclass(frozen=True)
class Notation:
    """How one kind of model writes places.

    `read` finds the places of an answer, in order, and accepts any text. Their numbers are pairs of x and y, or of y
    and x with `y_first`. Numbers of 0 to `scale` stand for the whole of what the model saw; with None they are pixels
    of the resized picture.

    The question of `locate` is `question` with the thing in place of `{thing}`, and its answer follows `schema`, a JSON
    Schema, or `grammar`: llguidance's Lark with a rule `body`, given the ids of the vocabulary's control tokens.
    With `reads_all`, the question is about every text, and what names the thing is chosen from the answer.

    `controls` matches the control tokens that belong to the notation; they are not text, but are parsed as if they
    were.
    With `raw`, the model was trained without a chat template.

    The models of a kind are found by `names`, which matches their name, by `mark`, a control token that only they have,
    or by `vision_families`. A notation with a `refusal` is known but not supported; it says why.
    """

    name: str
    read: Callable[[str], list[Place]]
    scale: float | None
    question: str
    y_first: bool = False
    schema: Mapping[str, Any] | None = None
    grammar: Grammar | None = None
    controls: re.Pattern[str] | None = None
    reads_all: bool = False
    raw: bool = False
    names: re.Pattern[str] | None = None
    mark: str | None = None
    vision_families: tuple[str, ...] = ()
    refusal: str | None = None
    question_controls: tuple[str, ...] = field(default=())  # control tokens of `question`

    def ask(self, thing: str) -> str:
        return self.question.replace(THING, thing)
