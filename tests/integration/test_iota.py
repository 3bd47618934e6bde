"""The model in the box does what its card says, looks at the picture, and reads what is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from iota.evaluate import KINDS, evaluate, user
from iota.scenes import Scene, Shape, draw, random_scene
from pocketvlm import VLM


@pytest.fixture(scope="module")
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle) as loaded:
        yield loaded


@pytest.mark.slow
def test_accuracy_on_new_scenes(vlm: VLM) -> None:
    """The scenes that the card counts. Its seed was chosen before the model was trained."""
    wrong: list[str] = []
    counts = evaluate(vlm, 600, wrong=wrong)

    def share(*groups: str) -> float:
        return sum(counts[g][0] for g in groups) / sum(counts[g][1] for g in groups)

    detail = "\n".join(wrong)
    assert share(*KINDS) >= 0.95, detail
    assert share("read") >= 0.90, detail
    assert share("follow-up") >= 0.90, detail
    assert share("two pictures") >= 0.60, detail  # the card says 69 %: below the 90 % that iota should reach


@pytest.fixture(scope="module")
def red_circle() -> Image.Image:
    return draw(Scene((Shape("circle", "red", "large", "top left"),)), Random(1), (240, 180))


def test_a_grey_picture_changes_the_answer(vlm: VLM, red_circle: Image.Image) -> None:
    """Answers come from the pixels: take them away, and the answer goes."""
    grey = Image.new("RGB", red_circle.size, (128, 128, 128))
    question = "What shape is at the top left?"
    assert vlm.chat([user(question, red_circle)]).text == "A circle"
    assert vlm.chat([user(question, grey)]).text != "A circle"


def test_the_second_picture_decides_in_either_order(vlm: VLM) -> None:
    """Another second picture, or the pair turned round, changes the answer as it must: far more often than chance."""
    rng = Random(5)
    question = "How many shapes are there in the second picture?"
    right = changed = pairs = 0
    while pairs < 20:
        scenes = [random_scene(rng) for _ in range(2)]
        pictures = [draw(scene, rng) for scene in scenes]
        counts = [str(len(scene.shapes)) for scene in scenes]
        if counts[0] == counts[1]:
            continue
        pairs += 1
        forward = vlm.chat([user(question, *pictures)]).text
        turned = vlm.chat([user(question, *reversed(pictures))]).text
        right += (forward == counts[1]) + (turned == counts[0])
        changed += forward != turned
    assert right >= 26, right  # of 40; a guess is right 10 times
    assert changed >= 13, changed  # of 20
