"""Measure iota's decisions on "Is there a ...?": `python -m iota.decisions [BUNDLE]`.

One temperature is fitted on scenes of one seed, and the calibration error is measured on scenes of another. Training
used neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from pocketvlm import VLM
from pocketvlm.decisions.calibration import Example, expected_calibration_error, fit_temperature
from pocketvlm.decisions.choices import YES_NO

from .evaluate import user
from .questions import ask
from .scenes import draw, random_scene

SEED = 20_491
_BEGINNINGS = ("Is there a", "Do you see a")


def questions(count: int, seed: int = SEED) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Yield conversations that ask whether something is there, and whether it is. Both are equally likely."""
    rng = Random(seed)
    while count:
        scene = random_scene(rng)
        turn = ask(scene, "yesno", rng)
        if turn is not None and turn.question.startswith(_BEGINNINGS):
            count -= 1
            yield [user(turn.question, draw(scene, rng))], turn.answer == "Yes"


def examples(vlm: VLM, count: int, seed: int = SEED) -> list[Example]:
    """Decide `count` questions, and return the scores of yes and no with the right answer."""
    yes, no = (YES_NO.names.index(name) for name in ("yes", "no"))
    return [
        Example(tuple(vlm.decide(messages, yes_no=True).logprobs.values()), yes if truth else no)
        for messages, truth in questions(count, seed)
    ]


def area_under_curve(decided: Sequence[Example]) -> float:
    """Return how often something that is there gets a higher probability of yes than something that is not."""
    margins: tuple[list[float], list[float]] = ([], [])
    for example in decided:
        margins[example.answer].append(example.logprobs[0] - example.logprobs[1])
    there, not_there = margins
    wins = sum((a > b) + (a == b) / 2 for a in there for b in not_there)
    return wins / (len(there) * len(not_there))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("bundle", nargs="?", help="without one, the built-in iota")
    options.add_argument("--count", type=int, default=600, help="questions to calibrate with, and as many to measure")
    options.add_argument("--seed", type=int, default=SEED)
    arguments = options.parse_args()
    with VLM.load(arguments.bundle, threads=1) as vlm:  # so small a model that threads would wait for each other
        known = examples(vlm, arguments.count, arguments.seed)
        new = examples(vlm, arguments.count, arguments.seed + 1)
    temperature = fit_temperature(known)
    right = sum(example.logprobs[example.answer] == max(example.logprobs) for example in new)
    print(f"{len(new)} questions, {right / len(new):.1%} right, area under the curve {area_under_curve(new):.4f}")
    before, after = (expected_calibration_error([(example, t) for example in new]) for t in (1.0, temperature))
    print(f"temperature {temperature:.3f}, expected calibration error {before:.4f} before, {after:.4f} after")


if __name__ == "__main__":
    main()
