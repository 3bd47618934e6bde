"""Measure how certain iota is of its answers: `python -m iota.certainty [PICTURE ...] [--bundle BUNDLE] [--write]`.

The certainty of an answer is the probability of its least likely token. It is measured in scenes from a seed that
training never used, and in pictures of other things: drawn ones (`foreign.py`) and the files that are named, such as
photographs. The threshold is the largest of 0.99, 0.98 ... that at most one in twenty of the right answers falls below.
With `--write` it goes into the bundle's manifest, where the runtime finds it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm import VLM, Scope
from pocketvlm.files.bundle import Bundle
from pocketvlm.files.locate import iota

from .evaluate import trials, user
from .foreign import foreign_pictures

SEED = 47_110
QUESTIONS = (
    *("What is in the picture?", "Describe the picture.", "What is this?"),
    *("What number is printed?", "What colour is the shape in the middle?", "How many shapes are there?"),
)
KNOWS = "drawn shapes, colours, places, numbers and a few words"
ALLOWED = 0.05  # share of right answers that may fall below the threshold


@dataclass(frozen=True)
class Answer:
    group: str
    picture: str
    text: str
    certainty: float
    right: bool | None = None  # None: there is no right answer


def answer(vlm: VLM, messages: list[dict[str, Any]]) -> tuple[str, float]:
    """Return an answer and the probability of its least likely token."""
    completion = vlm.chat(messages, max_tokens=96, logprobs=True)
    scores = completion.choices[0].logprobs
    assert scores is not None
    return completion.text, math.exp(min(token.logprob for token in scores.content))


def known(vlm: VLM, count: int, seed: int) -> Iterator[Answer]:
    """Ask about scenes: `count` questions about one picture, of all kinds."""
    single = (trial for trial in trials(count, seed) if trial.group != "two pictures")
    for _, trial in zip(range(count), single, strict=False):
        text, certainty = answer(vlm, trial.messages)
        yield Answer(trial.group, "scene", text, certainty, text == trial.expected)


def foreign(vlm: VLM, files: list[Path]) -> Iterator[Answer]:
    pictures: list[tuple[str, Any]] = [*foreign_pictures(), *((path.stem, path) for path in files)]
    for name, picture in pictures:
        for question in QUESTIONS:
            text, certainty = answer(vlm, [user(question, picture)])
            yield Answer(question, name, text, certainty)


def threshold(answers: list[Answer]) -> float:
    right = sorted(one.certainty for one in answers if one.right)
    lowest = right[int(ALLOWED * len(right))]
    return math.floor(100 * lowest) / 100


def share_below(answers: list[Answer], least: float) -> str:
    below = sum(one.certainty < least for one in answers)
    return f"{below} of {len(answers)} below {least:.2f}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("pictures", nargs="*", type=Path, help="photographs and other pictures of foreign things")
    options.add_argument("--bundle", type=Path, default=iota())
    options.add_argument("--count", type=int, default=300, help="questions about scenes")
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--write", action="store_true", help="write the threshold into the bundle's manifest")
    options.add_argument("--all", action="store_true", help="print every answer")
    arguments = options.parse_args()
    with VLM.load(arguments.bundle) as vlm:
        scenes = [*known(vlm, arguments.count, arguments.seed)]
        others = [*foreign(vlm, arguments.pictures)]
        recorded = vlm.scope.min_probability if vlm.scope else None
    least = threshold(scenes)
    print(f"threshold: {least:.2f}; the manifest has {recorded}")
    if recorded and not arguments.write:
        least = recorded
    for what, answers in (
        ("right answers", [one for one in scenes if one.right]),
        ("wrong answers", [one for one in scenes if not one.right]),
        *((f"foreign, {question}", [one for one in others if one.group == question]) for question in QUESTIONS),
    ):
        values = sorted(one.certainty for one in answers)
        spread = " ".join(f"{values[int(share * (len(values) - 1))]:.2f}" for share in (0, 0.05, 0.25, 0.5, 0.75, 1))
        print(f"{what}: {spread} (lowest, 5 %, 25 %, median, 75 %, highest); {share_below(answers, least)}")
    if arguments.all:
        for one in sorted((*scenes, *others), key=lambda one: one.certainty):
            print(f"{one.certainty:.3f} {one.right!s:5} {one.picture}: {one.group} -> {one.text}")
    if arguments.write:
        manifest = Bundle(arguments.bundle).manifest
        manifest.model_copy(update={"scope": Scope(knows=KNOWS, min_probability=least)}).write(arguments.bundle)


if __name__ == "__main__":
    main()
