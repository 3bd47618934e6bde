"""The model in the box does what its card says, looks at the picture, and reads what is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from iota.evaluate import KINDS, evaluate, user
from iota.scenes import Scene, Shape, Text, draw
from pocketvlm import VLM


@pytest.fixture(scope="module")
def vlm(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle) as loaded:
        yield loaded


def test_accuracy_on_new_scenes(vlm: VLM) -> None:
    """A third of the scenes that the card counts, drawn from another seed."""
    wrong: list[str] = []
    counts = evaluate(vlm, 200, seed=77, wrong=wrong)

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


@pytest.fixture(scope="module")
def number() -> Image.Image:
    return draw(Scene((), Text("number", "73", "blue", "middle")), Random(2), (240, 180))


def test_a_grey_picture_changes_the_answer(vlm: VLM, red_circle: Image.Image) -> None:
    """Answers come from the pixels: take them away, and the answer goes."""
    grey = Image.new("RGB", red_circle.size, (128, 128, 128))
    question = "What shape is at the top left?"
    assert vlm.chat([user(question, red_circle)]).text == "A circle"
    assert vlm.chat([user(question, grey)]).text != "A circle"


def test_a_swapped_second_picture_changes_the_answer(vlm: VLM, red_circle: Image.Image, number: Image.Image) -> None:
    question = "How many shapes are there in the second picture?"
    other = draw(
        Scene(tuple(Shape("star", "green", "large", p) for p in ("top left", "top right"))), Random(3), (240, 180)
    )
    assert vlm.chat([user(question, number, red_circle)]).text == "1"
    assert vlm.chat([user(question, number, other)]).text == "2"


def test_a_reordered_pair_changes_the_answer(vlm: VLM, red_circle: Image.Image, number: Image.Image) -> None:
    question = "Which picture shows a circle?"
    assert vlm.chat([user(question, red_circle, number)]).text == "The first one"
    assert vlm.chat([user(question, number, red_circle)]).text == "The second one"
