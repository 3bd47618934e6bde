"""What iota's recipe writes about boxes, records, pages and absent things is what its pictures show."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFilter
from tokenizers import Tokenizer

from iota.absent import HELD_OUT, THINGS, TRAINED, ask_absent, missing
from iota.boxes import ask_boxes, named, written
from iota.evaluate_boxes import Case, cases, overlap, reached
from iota.pages import ask_page
from iota.questions import conversation
from iota.records import ask_record
from iota.samples import Sampler
from iota.scenes import COLOURS, WORDS, Scene, Shape, Text, drawn, random_page, random_scene
from iota.styles import styled
from iota.tokenizer import PIECES, extend
from iota.train import CHECKPOINT, FAMILY, PHASES
from iota.unseen import unseen

SIZE = (320, 240)


Paint = Callable[[Scene, Random, tuple[int, int]], tuple[Image.Image, Scene]]


@pytest.mark.parametrize("paint", [drawn, styled, unseen])
def test_boxes_are_where_the_ink_is(paint: Paint) -> None:
    """What changes where a shape is painted or left out, by the same state of the generator."""
    rng, near, compared = Random(1), 0, 0
    for seed in range(40):
        colour = rng.choice([c for c in COLOURS if c not in ("yellow", "pink", "black")])
        scene = Scene((Shape(rng.choice(("square", "circle", "cross")), colour, "large", "top right"),))
        picture, seen = paint(scene, Random(seed), SIZE)
        empty, _ = paint(Scene(()), Random(seed), SIZE)
        changed = ImageChops.difference(picture, empty).convert("L").point(lambda value: 255 * (value > 48))
        ink = changed.filter(ImageFilter.MedianFilter(3)).getbbox()
        if ink is None:
            continue
        edges = tuple(edge / SIZE[number % 2] for number, edge in enumerate(ink))
        compared += 1
        near += overlap(seen.boxes[0], (edges[0], edges[1], edges[2], edges[3])) > 0.8
    assert compared > 25
    assert near > 0.75 * compared  # a picture with noise, or on another ground, changes elsewhere, too


def test_a_question_for_boxes_is_answered_with_those_of_the_scene() -> None:
    rng, absent, several = Random(2), 0, 0
    for _ in range(400):
        _, scene = drawn(random_scene(rng), rng, (120, 90))
        turn = ask_boxes(scene, rng)
        if turn is None:
            continue
        assert "JSON" in turn.question
        answer = json.loads(turn.answer)
        absent, several = absent + (not answer), several + (len(answer) > 1)
        whole = json.loads(written([(named(s), box) for s, box in zip(scene.shapes, scene.boxes, strict=False)]))
        for one in answer:
            assert list(one) == ["bbox_2d", "label"]
            left, top, right, bottom = one["bbox_2d"]
            assert 0 <= left < right <= 1000
            assert 0 <= top < bottom <= 1000
            if one["label"].split()[0] not in ("word", "number", "text"):
                assert any(w["bbox_2d"] == one["bbox_2d"] and w["label"].endswith(one["label"]) for w in whole)
    assert absent > 40
    assert several > 40


def test_a_line_is_not_taken_for_a_number() -> None:
    rng, scene = Random(7), Scene((), Text("line", "ice ox", "red", "middle"))
    asked = {turn.question for _ in range(100) for turn in conversation((scene,), rng, 6, PHASES[-1].shares)}
    assert "Read the line." in asked
    assert not any(question.startswith(("Does it say", "Is the line ")) for question in asked)
    assert "Is there a word?" not in asked


def test_what_is_missing_is_not_in_the_scene() -> None:
    rng = Random(3)
    for _ in range(200):
        scene = random_scene(rng)
        thing = missing(scene, rng)
        assert all(thing not in (s.shape, named(s)) for s in scene.shapes)
        assert ask_absent(scene, rng).answer == "No"
    assert not {*THINGS} & {*WORDS}
    assert not {*TRAINED} & {*HELD_OUT}


def test_records_have_the_keys_of_the_question_in_its_order() -> None:
    rng = Random(4)
    for _ in range(200):
        scene = random_scene(rng)
        turn = ask_record(scene, rng)
        assert turn is not None
        keys = list(json.loads(turn.answer))
        assert ", ".join(keys) in turn.question


def test_tables_are_read_cell_by_cell() -> None:
    rng, cells = Random(5), 0
    for _ in range(200):
        scene = random_page(rng)
        turn = ask_page(scene, rng)
        assert turn is not None
        assert scene.text is not None
        rows = [row.split() for row in scene.text.text.split("\n")]
        if turn.question.startswith("What number is in row"):
            row, column = (int(part) for part in turn.question.rstrip("?").replace(",", "").split() if part.isdigit())
            assert turn.answer == rows[row - 1][column - 1]
            cells += 1
    assert cells > 10


def test_a_longer_vocabulary_keeps_the_tokens_of_other_texts() -> None:
    old = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    new = extend(old)
    assert all(len(new.encode(piece, add_special_tokens=False).ids) == 1 for piece in PIECES)
    sampler = [Sampler(tokenizer, FAMILY, 6) for tokenizer in (old, new)]
    for index in range(30):
        one, two = (each.sample(index, PHASES[0]) for each in sampler)
        assert np.array_equal(one.ids, two.ids)


def test_overlap_is_intersection_over_union() -> None:
    assert overlap((0, 0, 0.5, 1), (0, 0, 1, 1)) == pytest.approx(0.5)
    assert overlap((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)) == 0
    assert overlap((0, 0, 0.2, 0.2), (0.1, 0, 0.3, 0.2)) == pytest.approx(1 / 3)


def test_each_thing_needs_a_box_of_its_own() -> None:
    case = next(case for case in cases(60) if len(case.wanted) > 1)
    assert reached(case, written(case.wanted)) == len(case.wanted)
    assert reached(case, written(case.wanted[:1])) == 1
    once = Case(case.style, case.detail, case.picture, case.question, [case.wanted[0]] * 2)
    assert reached(once, written([case.wanted[0]])) == 1
    assert reached(case, "A circle") == 0
