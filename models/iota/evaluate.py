"""Measure how often iota is right, through `VLM.chat` with greedy decoding: `python -m iota.evaluate [BUNDLE ...]`.

Scenes are drawn from a seed that training never used. An answer is right if it equals the expected string.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from random import Random
from typing import Any

from PIL import Image

from pocketvlm import VLM

from .absent import HELD_OUT, ask_absent
from .pages import ask_page
from .questions import about_two, ask, follow_up
from .records import ask_record
from .scenes import Scene, draw, random_page, random_scene
from .turn import Turn

SEED = 20_261
KINDS = ("shape", "colour", "size", "place", "count", "yesno")
GROUPS = (*KINDS, "describe", "read", "follow-up", "two pictures")
MORE = ("absent", "record", "line", "table")  # what the fourth phase of training is for


@dataclass(frozen=True)
class Trial:
    """A conversation whose last answer is compared with `expected`."""

    group: str
    messages: list[dict[str, Any]]
    expected: str


def user(question: str, *pictures: Image.Image) -> dict[str, Any]:
    """Return a user message with pictures before the question."""
    images = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": question}]}


def trials(scenes: int, seed: int = SEED) -> Iterator[Trial]:
    """Yield trials: one question for each scene, the kinds in turn, and for some more.

    Every fourth scene is described. Scenes that allow it get a reading and a follow-up. Every second scene is also
    shown together with another one.
    """
    rng = Random(seed)
    for number in range(scenes):
        scene = random_scene(rng)
        picture = draw(scene, rng)
        turn = _question(scene, KINDS[number % len(KINDS)], rng)
        yield Trial(turn.kind, [user(turn.question, picture)], turn.answer)
        if number % 4 == 0:
            turn = _question(scene, "describe", rng)
            yield Trial("describe", [user(turn.question, picture)], turn.answer)
        read = ask(scene, "read", rng)
        if read:
            yield Trial("read", [user(read.question, picture)], read.answer)
        first = _question(scene, rng.choice(("shape", "colour", "place", "size")), rng)
        second = follow_up(first, rng)
        if second:
            dialogue = [user(first.question, picture), {"role": "assistant", "content": first.answer}]
            yield Trial("follow-up", [*dialogue, {"role": "user", "content": second.question}], second.answer)
        if number % 2:
            other = random_scene(rng)
            both = _about_two(scene, other, rng)
            yield Trial("two pictures", [user(both.question, picture, draw(other, rng))], both.answer)


def more_trials(scenes: int, seed: int = SEED) -> Iterator[Trial]:
    """Yield a question about something foreign, for a JSON object and about a page for each fourth of `scenes`."""
    rng = Random(seed + 1)
    for _ in range(scenes // 4):
        scene, page = random_scene(rng), random_page(rng)
        picture = draw(scene, rng)
        absent, record, read = ask_absent(scene, rng, HELD_OUT), ask_record(scene, rng), ask_page(page, rng)
        assert record is not None
        assert read is not None
        assert page.text is not None
        for turn in (absent, record):
            yield Trial(turn.kind, [user(turn.question, picture)], turn.answer)
        yield Trial(page.text.kind, [user(read.question, draw(page, rng))], read.answer)


def _question(scene: Scene, kind: str, rng: Random) -> Turn:
    """Return a question of `kind`, or a counting one if the scene allows none of that kind."""
    for _ in range(20):
        turn = ask(scene, kind, rng)
        if turn:
            return turn
    turn = ask(scene, "count", rng)
    assert turn is not None
    return turn


def _about_two(one: Scene, two: Scene, rng: Random) -> Turn:
    while True:
        turn = about_two((one, two), rng)
        if turn:
            return turn


def evaluate(
    vlm: VLM, scenes: int, seed: int = SEED, wrong: list[str] | None = None, more: bool = False
) -> dict[str, tuple[int, int]]:
    """Return (right answers, trials) for each of GROUPS, with `more` of MORE, too. Wrong answers go to `wrong`."""
    counts = dict.fromkeys((*GROUPS, *MORE) if more else GROUPS, (0, 0))
    for trial in chain(trials(scenes, seed), more_trials(scenes, seed) if more else ()):
        answer = vlm.chat(trial.messages, max_tokens=96).text
        right, total = counts[trial.group]
        counts[trial.group] = (right + (answer == trial.expected), total + 1)
        if wrong is not None and answer != trial.expected:
            question = trial.messages[-1]["content"]
            text = question if isinstance(question, str) else question[-1]["text"]
            wrong.append(f"{trial.group}: {text} -> {answer!r}, not {trial.expected!r}")
    return counts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "bundles", nargs="*", default=[None], help="bundles to evaluate; without one, the built-in iota"
    )
    options.add_argument("--scenes", type=int, default=600)
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--more", action="store_true", help="also ask what the next iota is to learn")
    options.add_argument("--wrong", action="store_true", help="print the wrong answers")
    arguments = options.parse_args()
    groups = (*GROUPS, *MORE) if arguments.more else GROUPS
    print("| bundle | " + " | ".join(groups) + " |")
    print("|---|" + "---|" * len(groups))
    for bundle in arguments.bundles:
        wrong: list[str] = []
        with VLM.load(bundle) as vlm:
            counts = evaluate(vlm, arguments.scenes, arguments.seed, wrong, arguments.more)
        cells = (f"{100 * right / total:.1f}" if total else "-" for right, total in counts.values())
        print(f"| {bundle or 'iota'} | " + " | ".join(cells) + " |", flush=True)
        if arguments.wrong:
            print("\n".join(wrong))


if __name__ == "__main__":
    main()
