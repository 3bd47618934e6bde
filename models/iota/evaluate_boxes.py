"""Measure iota's boxes through `VLM.chat` with greedy decoding: `python -m iota.evaluate_boxes [BUNDLE ...]`.

A thing that was asked for counts where a box with its label overlaps its own by half or more (intersection over union).
Pictures have five sizes and are asked about at each detail, in the recipe's own style and in one that it does not have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from PIL import Image

from pocketvlm import VLM

from .absent import HELD_OUT, missing, some_thing
from .boxes import QUESTION, named, written
from .evaluate import user
from .printing import Area
from .scenes import Scene, drawn, random_scene
from .unseen import unseen

SEED = 20_262
SIZES = ((96, 96), (320, 240), (240, 320), (480, 216), (640, 640))
DETAILS = ("low", "auto", "high")
_Draw = Callable[[Scene, Random, tuple[int, int]], tuple[Image.Image, Scene]]
STYLES: dict[str, _Draw] = {"own style": drawn, "unseen style": unseen}
NOTHING = "nothing there"


@dataclass(frozen=True)
class Case:
    style: str
    detail: str
    picture: Image.Image
    question: str
    wanted: list[tuple[str, Area]]


def cases(count: int, seed: int = SEED) -> Iterator[Case]:
    """Yield `count` questions in each style, and half as many for what is not there; sizes and details in turn."""
    rng = Random(seed)
    for number in range(count):
        size, detail = SIZES[number % len(SIZES)], DETAILS[number // len(SIZES) % len(DETAILS)]
        for style, paint in STYLES.items():
            scene = Scene(())
            while not scene.shapes and scene.text is None:
                scene = random_scene(rng)
            picture, scene = paint(scene, rng, size)
            thing, wanted = _asked(scene, rng)
            yield Case(style, detail, picture, QUESTION.format(thing=thing), wanted)
            if style == "own style" and number % 2:
                absent = missing(scene, rng) if number % 4 == 1 else some_thing(rng, HELD_OUT)
                yield Case(NOTHING, detail, picture, QUESTION.format(thing=f"the {absent}"), [])


def _asked(scene: Scene, rng: Random) -> tuple[str, list[tuple[str, Area]]]:
    boxes = list(zip(scene.shapes, scene.boxes, strict=False))
    if scene.text and (not boxes or rng.random() < 0.3):
        return f"the {scene.text.kind}", [(scene.text.kind, scene.boxes[-1])]
    if rng.random() < 0.25:
        return "all shapes", [(named(shape), box) for shape, box in boxes]
    label = named(rng.choice(scene.shapes))
    wanted = [(label, box) for shape, box in boxes if named(shape) == label]
    return (f"every {label}" if len(wanted) > 1 else f"the {label}"), wanted


def overlap(one: Area, two: Area) -> float:
    """Return the intersection over union of two boxes."""
    wide = min(one[2], two[2]) - max(one[0], two[0])
    high = min(one[3], two[3]) - max(one[1], two[1])
    common = max(0.0, wide) * max(0.0, high)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two))
    return common / (areas - common) if areas > common else 0.0


def read(answer: str) -> list[tuple[str, Area]]:
    """Return the labelled boxes of an answer as fractions; none where it is not JSON of that form."""
    try:
        return [(each["label"], tuple(edge / 1000 for edge in each["bbox_2d"])) for each in json.loads(answer)]
    except (ValueError, KeyError, TypeError):
        return []


def reached(case: Case, answer: str, least: float = 0.5) -> int:
    """Return for how many of the things asked for the answer has a box of its own."""
    left = read(answer)
    count = 0
    for label, box in case.wanted:
        best = max((one for one in left if one[0] == label), key=lambda one: overlap(one[1], box), default=None)
        if best and overlap(best[1], box) >= least:
            left.remove(best)
            count += 1
    return count


def evaluate(vlm: VLM, count: int, seed: int = SEED, wrong: list[str] | None = None) -> dict[str, tuple[int, int]]:
    """Return (reached, asked) of things by style, then by detail and size, and of questions with nothing there."""
    names = (*STYLES, NOTHING, *DETAILS, *(f"{w}x{h}" for w, h in SIZES))
    counts = dict.fromkeys(names, (0, 0))
    for case in cases(count, seed):
        message: dict[str, Any] = user(case.question, case.picture)
        message["content"][0]["detail"] = case.detail
        answer = vlm.chat([message], max_tokens=256).text
        nothing = case.style == NOTHING
        hits, asked = (int(answer == "[]"), 1) if nothing else (reached(case, answer), len(case.wanted))
        groups = [case.style]
        if case.style == "own style":
            groups += [case.detail, f"{case.picture.width}x{case.picture.height}"]
        for group in groups:
            counts[group] = (counts[group][0] + hits, counts[group][1] + asked)
        if wrong is not None and hits < asked:
            wrong.append(f"{', '.join(groups)}: {case.question} -> {answer!r}, not {written(case.wanted)!r}")
    return counts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("bundles", nargs="*", default=[None], help="without one, the built-in iota")
    options.add_argument("--count", type=int, default=300, help="questions in each style")
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--wrong", action="store_true", help="print the wrong answers")
    arguments = options.parse_args()
    for bundle in arguments.bundles:
        wrong: list[str] = []
        with VLM.load(bundle) as vlm:
            counts = evaluate(vlm, arguments.count, arguments.seed, wrong)
        print("| bundle | " + " | ".join(counts) + " |")
        print("|---|" + "---|" * len(counts))
        cells = (f"{100 * hits / asked:.1f}" if asked else "-" for hits, asked in counts.values())
        print(f"| {bundle or 'iota'} | " + " | ".join(cells) + " |", flush=True)
        if arguments.wrong:
            print("\n".join(wrong))


if __name__ == "__main__":
    main()
