"""How often iota is right, through `VLM.chat` with greedy decoding: `python -m iota.evaluate [BUNDLE ...]`.

Scenes are drawn anew from a seed that training never used; an answer counts when it is the same string.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import Image

from pocketvlm import VLM

from .questions import Turn, about_two, ask, follow_up
from .scenes import Scene, draw, random_scene

SEED = 20_261
KINDS = ("shape", "colour", "size", "place", "count", "yesno")
GROUPS = (*KINDS, "describe", "read", "follow-up", "two pictures")


@dataclass(frozen=True)
class Trial:
    """A conversation whose last answer is compared with `expected`."""

    group: str
    messages: list[dict[str, Any]]
    expected: str


def user(question: str, *pictures: Image.Image) -> dict[str, Any]:
    shown = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*shown, {"type": "text", "text": question}]}


def trials(scenes: int, seed: int = SEED) -> Iterator[Trial]:
    """For each scene one question, in turn of each kind; a reading and a follow-up where it allows; every second
    scene also beside another one."""
    rng = Random(seed)
    for number in range(scenes):
        scene = random_scene(rng)
        picture = draw(scene, rng)
        turn = _some(scene, KINDS[number % len(KINDS)], rng)
        yield Trial(turn.kind, [user(turn.question, picture)], turn.answer)
        if number % 4 == 0:
            turn = _some(scene, "describe", rng)
            yield Trial("describe", [user(turn.question, picture)], turn.answer)
        read = ask(scene, "read", rng)
        if read:
            yield Trial("read", [user(read.question, picture)], read.answer)
        first = _some(scene, rng.choice(("shape", "colour", "place", "size")), rng)
        second = follow_up(first, rng)
        if second:
            talk = [user(first.question, picture), {"role": "assistant", "content": first.answer}]
            yield Trial("follow-up", [*talk, {"role": "user", "content": second.question}], second.answer)
        if number % 2:
            other = random_scene(rng)
            both = _about_two(scene, other, rng)
            yield Trial("two pictures", [user(both.question, picture, draw(other, rng))], both.answer)


def _some(scene: Scene, kind: str, rng: Random) -> Turn:
    """A question of `kind`, or where the scene has none, one that every scene has."""
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


def evaluate(vlm: VLM, scenes: int, seed: int = SEED, wrong: list[str] | None = None) -> dict[str, tuple[int, int]]:
    """(right, asked) for each group; the wrong answers are appended to `wrong`."""
    counts = dict.fromkeys(GROUPS, (0, 0))
    for trial in trials(scenes, seed):
        answer = vlm.chat(trial.messages, max_tokens=96).text
        right, asked = counts[trial.group]
        counts[trial.group] = (right + (answer == trial.expected), asked + 1)
        if wrong is not None and answer != trial.expected:
            question = trial.messages[-1]["content"]
            shown = question if isinstance(question, str) else question[-1]["text"]
            wrong.append(f"{trial.group}: {shown} -> {answer!r}, not {trial.expected!r}")
    return counts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("bundles", nargs="*", default=[None], help="iota in the box without one")
    options.add_argument("--scenes", type=int, default=600)
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--wrong", action="store_true", help="print the wrong answers")
    arguments = options.parse_args()
    print("| bundle | " + " | ".join(GROUPS) + " |")
    print("|---|" + "---|" * len(GROUPS))
    for bundle in arguments.bundles:
        wrong: list[str] = []
        with VLM.load(bundle) as vlm:
            counts = evaluate(vlm, arguments.scenes, arguments.seed, wrong)
        cells = (f"{100 * right / asked:.1f}" if asked else "-" for right, asked in counts.values())
        print(f"| {bundle or 'iota'} | " + " | ".join(cells) + " |", flush=True)
        if arguments.wrong:
            print("\n".join(wrong))


if __name__ == "__main__":
    main()
